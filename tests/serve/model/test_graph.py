from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from serve.contract.errors import TabrankError
from serve.model.encoder import Encoder, NumericColumn
from serve.model.folding import fold
from serve.model.graph import Calibration, Folded, forward
from serve.model.torch_ops import TorchOps
from tests.support.networks import (
    CALIBRATIONS,
    calibrations,
    random_config,
    random_encoder,
    random_network,
    random_rows,
    tolerance,
    trained_scores,
    weights,
)
from training.network.network import Network, NetworkConfig


def folded(network: Network, chosen: Sequence[Calibration] = ()) -> Folded:
    config = dataclasses.asdict(network.config)
    return fold(weights(network), network.encoder, config, chosen or calibrations(network))


def scores(
    graph: Folded, parts: tuple[np.ndarray, ...], *, exact: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    shares, residual = forward(TorchOps(), graph, *(torch.from_numpy(p) for p in parts), exact=exact)
    return shares.numpy(), residual.numpy()


@pytest.mark.parametrize("seed", range(30))
def test_the_graph_scores_as_the_trained_network_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    encoder = random_encoder(rng, *((3, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 1), (9, 4, 2))[seed % 5])
    config = random_config(rng, ("entmax", "sparsemax")[seed % 2])
    network = random_network(rng, encoder, config, 1 + seed % 3)
    numeric, category = random_rows(rng, encoder, 60)
    numeric[0], category[0] = np.nan, 0  # all missing
    category[1] = 99  # all unseen
    numeric[2:4, :1] = np.float32([[np.inf], [-np.inf]])
    want, allowed = trained_scores(network, numeric, category), tolerance(network, numeric, category)
    for exact in (False, True):
        found, residual = scores(folded(network), encoder.encode(numeric, category), exact=exact)
        assert found.shape == (60, 1 + seed % 3)
        np.testing.assert_allclose(found, want, rtol=0, atol=allowed)
        assert (residual <= 1e-6).all()


@pytest.mark.parametrize("mask_type", ["entmax", "sparsemax"])
@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_networks_as_they_are_fitted_are_met_within_1e_5(mask_type: Any, n_steps: int) -> None:
    rng = np.random.default_rng(n_steps)
    encoder = random_encoder(rng, 10, 4, 1)
    network = random_network(rng, encoder, NetworkConfig(mask_type=mask_type, n_steps=n_steps))
    rows = random_rows(rng, encoder, 500)
    found, _ = scores(folded(network), encoder.encode(*rows))
    np.testing.assert_allclose(found, trained_scores(network, *rows), rtol=0, atol=1e-5)


def test_a_row_that_is_not_finite_leaves_the_other_rows_alone() -> None:
    rng = np.random.default_rng(1)
    encoder = random_encoder(rng, 4, 2, 2)
    graph = folded(random_network(rng, encoder, NetworkConfig()))
    numeric, hot, index = encoder.encode(*random_rows(rng, encoder, 20))
    clean = [scores(graph, (numeric, hot, index), exact=exact)[0] for exact in (False, True)]
    hot[7] = np.nan
    numeric[11] = np.inf
    others = np.delete(np.arange(20), [7, 11])
    for exact in (False, True):
        dirty, residual = scores(graph, (numeric, hot, index), exact=exact)
        np.testing.assert_array_equal(dirty[others], clean[exact][others])
        assert np.isnan(dirty[7]).all()
        assert np.isfinite(dirty[11]).all()
        assert residual[7] == 1.0
        assert residual[others].max() <= 1e-6


def test_calibration_is_inside_of_the_graph_and_keeps_the_order() -> None:
    rng = np.random.default_rng(2)
    encoder = random_encoder(rng, 4, 1, 0)
    network = random_network(rng, encoder, NetworkConfig())
    numeric, category = random_rows(rng, encoder, 50)
    parts = encoder.encode(numeric, category)
    plain, _ = scores(folded(network, [Calibration()]), parts)
    calibrated, _ = scores(folded(network, [Calibration(2.5, -1.0)]), parts)
    np.testing.assert_allclose(
        np.log(calibrated / (1 - calibrated)), 2.5 * np.log(plain / (1 - plain)) - 1.0, atol=1e-3
    )
    np.testing.assert_array_equal(np.argsort(calibrated[:, 0]), np.argsort(plain[:, 0]))


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, float("inf"))])
def test_a_calibration_that_would_lose_the_order_is_refused(a: float, b: float) -> None:
    with pytest.raises(TabrankError, match="calibration"):
        Calibration(a, b)


def test_missing_and_infinite_weights_are_refused_by_name() -> None:
    encoder = Encoder((NumericColumn("a"),))
    network = Network(encoder, NetworkConfig())
    config = dataclasses.asdict(network.config)
    state = weights(network)
    state["tabnet.final_mapping.weight"] = state["tabnet.final_mapping.weight"] * np.inf
    with pytest.raises(TabrankError, match=r"final_mapping\.weight' is not finite"):
        fold(state, encoder, config, CALIBRATIONS[:1])
    del state["tabnet.final_mapping.weight"]
    with pytest.raises(TabrankError, match=r"final_mapping\.weight' is missing"):
        fold(state, encoder, config, CALIBRATIONS[:1])


def test_importing_the_graph_imports_no_framework() -> None:
    code = (
        "import sys, serve.model.folding, serve.model.encoder, serve.model.artifact, serve.model.scorers; "
        "print(sorted({'ray', 'torch', 'onnxruntime', 'pandas', 'onnx'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
