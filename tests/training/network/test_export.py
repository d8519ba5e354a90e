from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load as load_safetensors

from serve.contract.errors import TabrankError
from serve.features.matrix import Matrix
from serve.model.encoder import Encoder
from serve.model.folding import fold
from serve.model.graph import forward
from tests.support.networks import (
    calibrations,
    random_config,
    random_encoder,
    random_network,
    random_rows,
    tolerance,
    trained_scores,
    weights,
)
from training.network.export import build, export, golden
from training.network.network import Network, NetworkConfig

COLUMNS = ((3, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 1), (9, 4, 2), (0, 3, 1))


def sample(seed: int) -> tuple[np.random.Generator, Network]:
    rng = np.random.default_rng(100 + seed)
    encoder = random_encoder(rng, *COLUMNS[seed % len(COLUMNS)])
    config = random_config(rng, ("entmax", "sparsemax")[seed % 2])
    return rng, random_network(rng, encoder, config, 1 + seed % 3)


def run(model: bytes, parts: tuple[np.ndarray, ...]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = dict(zip(("numeric", "hot", "index"), parts, strict=True))
    return session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})


@pytest.mark.parametrize("seed", range(6, 12))
def test_the_exported_graphs_score_as_the_trained_network_does(seed: int) -> None:
    rng, network = sample(seed)
    graph = fold(weights(network), network.encoder, dataclasses.asdict(network.config), calibrations(network))
    for exact in (False, True):
        model = export(graph, exact)
        for num_rows in (1, 50):
            numeric, category = random_rows(rng, network.encoder, num_rows)
            numeric[0], category[0] = np.nan, 99
            shares, residual = run(model, network.encoder.encode(numeric, category))
            want, allowed = trained_scores(network, numeric, category), tolerance(network, numeric, category)
            assert shares.shape == (num_rows, 1 + seed % 3)
            np.testing.assert_allclose(shares, want, rtol=0, atol=allowed)
            assert residual.shape == (num_rows,)
            assert residual.max() <= 1e-6


def test_inputs_without_columns_are_left_out() -> None:
    for seed, names in enumerate((["numeric"], ["index"], ["hot"], ["numeric", "hot", "index"])):
        _, network = sample(seed)
        model = onnx.load_from_string(build(network, calibrations(network))["model.onnx"])
        assert [value.name for value in model.graph.input] == names
        assert [value.name for value in model.graph.output] == ["shares", "residual"]


def test_a_network_makes_the_same_files_each_time() -> None:
    _, network = sample(4)
    first, second = (build(network, calibrations(network)) for _ in range(2))
    assert set(first) == {"weights.safetensors", "encoder.json", "model.onnx", "model_sorting.onnx"}
    assert first == second


def test_the_files_hold_the_trained_weights_and_the_encoder() -> None:
    _, network = sample(4)
    files = build(network, calibrations(network))
    state = load_safetensors(files["weights.safetensors"])
    assert state.keys() == network.tabnet.state_dict().keys()
    for name, value in weights(network).items():
        np.testing.assert_array_equal(state[name], value)
    assert Encoder.from_json(files["encoder.json"]) == network.encoder


def test_only_the_sorting_graph_sorts_and_neither_refers_to_other_files() -> None:
    rng = np.random.default_rng(0)
    encoder = random_encoder(rng, 3, 1, 0)
    for mask_type in ("entmax", "sparsemax"):
        network = random_network(rng, encoder, NetworkConfig(mask_type=mask_type))
        files = build(network, calibrations(network))
        for name, sorts in (("model.onnx", False), ("model_sorting.onnx", True)):
            model = onnx.load_from_string(files[name])
            assert ("TopK" in {node.op_type for node in model.graph.node}) is sorts
            assert b"location" not in files[name]


def test_golden_rows_have_the_networks_scores_and_begin_with_all_missing() -> None:
    rng, network = sample(4)
    numeric, category = random_rows(rng, network.encoder, 300)
    kept = numeric.copy()
    rows = load_safetensors(golden(network, calibrations(network), Matrix(numeric, category), 20))
    assert rows["score"].shape == (20, 2)
    assert np.isnan(rows["numeric"][0]).all()
    assert not rows["category"][0].any()
    want = trained_scores(network, rows["numeric"], rows["category"])
    np.testing.assert_allclose(rows["score"], want, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(numeric, kept)


def test_a_graph_that_differs_from_the_network_makes_no_golden_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, network = sample(4)
    monkeypatch.setattr("serve.model.folding._BATCH_NORM_EPSILON", 0.1)
    with pytest.raises(TabrankError, match="differs from the trained network"):
        golden(network, calibrations(network), Matrix(*random_rows(rng, network.encoder, 300)))


def test_rows_whose_score_is_mostly_rounding_are_no_golden_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unstable(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        shares, residual = forward(*args, **kwargs)
        shares[::3, -1] += 1e-4
        return shares, residual

    rng, network = sample(4)
    numeric, category = random_rows(rng, network.encoder, 30)
    monkeypatch.setattr("training.network.export.forward", unstable)
    rows = load_safetensors(golden(network, calibrations(network), Matrix(numeric, category), 30))
    np.testing.assert_array_equal(rows["numeric"], np.delete(numeric, np.arange(0, 30, 3), axis=0))
