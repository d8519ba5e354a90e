from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import convert_model_to_external_data
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from serve.contract.errors import ArtifactRefused, TabrankError
from serve.model.artifact import Artifact, load
from serve.model.encoder import Encoder, NumericColumn
from serve.model.scorers import OnnxScorer, Scorer, TorchScorer, load_scorer
from tests.support.networks import (
    artifact_files,
    geometric_logits,
    random_config,
    random_encoder,
    random_network,
    random_rows,
    tolerance,
    trained_scores,
    write_artifact,
)
from training.network.network import Network, NetworkConfig

Place = tuple[Literal["onnx", "torch"], str | None]
"""Backend, and torch's device."""
PLACES: tuple[Place, ...] = (("onnx", None), ("torch", "cpu"))
CPU = [pytest.param(place, id=place[0]) for place in PLACES]
GPU = pytest.param(("torch", "cuda"), id="gpu", marks=pytest.mark.gpu)
on_cpu = pytest.mark.parametrize("place", CPU)
everywhere = pytest.mark.parametrize("place", [*CPU, GPU])


@pytest.fixture(scope="module", params=[1, 3], ids=["one outcome", "three outcomes"])
def network(request: pytest.FixtureRequest) -> Network:
    rng = np.random.default_rng(5)
    return random_network(rng, random_encoder(rng, 5, 2, 1), NetworkConfig(n_steps=3), request.param)


@pytest.fixture(scope="module")
def folder(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("scorers") / "a", network, np.random.default_rng(6))


def rows(network: Network, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    return random_rows(np.random.default_rng(7), network.encoder, num_rows)


def unverified(artifact: Artifact, place: Place) -> Scorer:
    """A scorer that has not scored the golden rows."""
    backend, device = place
    return OnnxScorer(artifact) if backend == "onnx" else TorchScorer(artifact, device)


def write_attending(folder: Path, logits: np.ndarray, config: NetworkConfig) -> tuple[Path, Network]:
    """An artifact whose masks have these logits [G] for every row."""
    rng = np.random.default_rng(8)
    encoder = Encoder(tuple(NumericColumn(f"n{i}") for i in range(len(logits))))
    network = random_network(rng, encoder, config)
    for attention in network.tabnet.tabnet.encoder.att_transformers:
        norm = attention.bn.bn
        with torch.no_grad():
            for value, tensor in ((0.0, attention.fc.weight), (0.0, norm.running_mean), (1.0, norm.weight)):
                tensor.fill_(value)
            norm.running_var.fill_(1.0)
            norm.bias.copy_(torch.from_numpy(logits))
    return write_artifact(folder, network, rng), network


@everywhere
def test_both_backends_score_as_the_trained_network(place: Place, network: Network, folder: Path) -> None:
    scorer = load_scorer(folder, *place)
    for num_rows in (1, 55, 440):
        numeric, category = rows(network, num_rows)
        found = scorer.score(numeric, category)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, trained_scores(network, numeric, category), rtol=0, atol=1e-5)


@everywhere
def test_no_rows_have_no_scores(place: Place, network: Network, folder: Path) -> None:
    scorer = load_scorer(folder, *place)
    assert scorer.score(*rows(network, 0)).shape == (0, len(scorer.outcomes))


@everywhere
def test_a_row_scores_alike_whatever_is_beside_it(place: Place, network: Network, folder: Path) -> None:
    scorer = load_scorer(folder, *place)
    numeric, category = rows(network, 40)
    clean = scorer.score(numeric, category)
    numeric[3], numeric[4], numeric[5] = np.inf, -np.inf, np.nan
    dirty = scorer.score(numeric, category)
    others = np.delete(np.arange(40), [3, 4, 5])
    np.testing.assert_array_equal(dirty[others], clean[others])
    assert np.isfinite(dirty).all()
    np.testing.assert_allclose(scorer.score(numeric[3:4], category[3:4]), dirty[3:4], atol=1e-6)


@everywhere
def test_rows_that_may_not_be_written_to_are_scored(place: Place, network: Network, folder: Path) -> None:
    numeric, category = rows(network, 5)
    numeric.flags.writeable = category.flags.writeable = False
    scorer = load_scorer(folder, *place)
    assert scorer.score(numeric, category).shape == (5, len(scorer.outcomes))


@on_cpu
def test_a_batch_that_the_passes_do_not_settle_is_rerun_with_a_sort(place: Place, tmp_path: Path) -> None:
    config = NetworkConfig(mask_type="sparsemax", n_steps=1)
    folder, network = write_attending(tmp_path / "a", geometric_logits(10)[0], config)
    artifact = load(folder)
    scorer = unverified(artifact, place)
    numeric, category = rows(network, 30)
    found = scorer.score(numeric, category)
    assert scorer.num_reruns == 1
    np.testing.assert_array_equal(found, scorer.score_sorting(numeric, category))
    np.testing.assert_allclose(found, trained_scores(network, numeric, category), atol=1e-6)


@on_cpu
@pytest.mark.parametrize("mask_type", ["sparsemax", "entmax"])
def test_a_row_that_the_passes_do_not_settle_changes_no_bit_of_the_others(
    place: Place,
    mask_type: Literal["sparsemax", "entmax"],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Three passes are too few for some rows.
    monkeypatch.setattr("serve.model.masks.num_passes", lambda mask_type, num_columns: 3)
    rng = np.random.default_rng(11)
    network = random_network(rng, random_encoder(rng, 8, 1, 1), NetworkConfig(n_steps=1, mask_type=mask_type))
    artifact = load(write_artifact(tmp_path / "a", network, rng))
    scorer = unverified(artifact, place)
    numeric, category = random_rows(rng, network.encoder, 400)
    alone = np.array([_settles(scorer, numeric[i : i + 1], category[i : i + 1]) for i in range(400)])
    settled, unsettled = np.flatnonzero(alone)[:50], np.flatnonzero(~alone)[:1]
    assert len(settled) == 50
    assert len(unsettled) == 1
    before, after = np.concatenate([settled, settled[:1]]), np.concatenate([settled, unsettled])
    clean = scorer.score(numeric[before], category[before])
    num_reruns = scorer.num_reruns
    dirty = scorer.score(numeric[after], category[after])
    assert scorer.num_reruns == num_reruns + 1
    np.testing.assert_array_equal(dirty[:50], clean[:50])
    assert dirty[50] == scorer.score_sorting(numeric[after], category[after])[50]


def _settles(scorer: Scorer, numeric: np.ndarray, category: np.ndarray) -> bool:
    num_reruns = scorer.num_reruns
    scorer.score(numeric, category)
    return scorer.num_reruns == num_reruns


@everywhere
@pytest.mark.parametrize("mask_type", ["sparsemax", "entmax"])
@pytest.mark.parametrize("size", [0.0, 1e4, 1e30, -1e4, -1e30])
def test_adversarial_logits_score_as_the_trained_network_does(
    place: Place, tmp_path: Path, mask_type: Literal["sparsemax", "entmax"], size: float
) -> None:
    config = NetworkConfig(mask_type=mask_type, n_steps=2)
    folder, network = write_attending(tmp_path / "a", np.eye(40)[3] * size, config)
    numeric, category = rows(network, 30)
    numeric[0] = np.nan
    found = load_scorer(folder, *place).score(numeric, category)
    np.testing.assert_allclose(found, trained_scores(network, numeric, category), rtol=0, atol=1e-5)


@on_cpu
def test_ordinary_batches_are_not_rerun(place: Place, network: Network, folder: Path) -> None:
    artifact = load(folder)
    scorer = unverified(artifact, place)
    scorer.score(*rows(network, 2_000))
    assert scorer.num_reruns == 0


@everywhere
@pytest.mark.parametrize("seed", range(6))
def test_any_shape_of_network_makes_an_artifact_that_both_backends_accept(
    place: Place, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    encoder = random_encoder(rng, *((2, 0, 0), (0, 1, 0), (0, 0, 1), (4, 3, 0), (0, 2, 1), (6, 2, 2))[seed])
    config = random_config(rng, ("entmax", "sparsemax")[seed % 2])
    network = random_network(rng, encoder, config, 1 + seed % 3)
    write_artifact(tmp_path / "a", network, rng)
    numeric, category = random_rows(rng, encoder, 30)
    want, allowed = trained_scores(network, numeric, category), tolerance(network, numeric, category)
    found = load_scorer(tmp_path / "a", *place).score(numeric, category)
    np.testing.assert_allclose(found, want, rtol=0, atol=allowed)


def test_a_matrix_of_another_surface_is_refused(network: Network, folder: Path) -> None:
    numeric, category = rows(network, 3)
    with pytest.raises(TabrankError, match="is the model of this surface"):
        load_scorer(folder, "onnx").score(numeric[:, 1:], category)


def refused(tmp_path: Path, network: Network, changed: dict[str, bytes], backend: Any = "onnx") -> str:
    folder = write_artifact(tmp_path / "refused", network, np.random.default_rng(6), changed)
    with pytest.raises(ArtifactRefused) as error:
        load_scorer(folder, backend)
    return str(error.value)


@on_cpu
def test_golden_scores_that_differ_refuse_the_artifact(
    place: Place, tmp_path: Path, network: Network, folder: Path
) -> None:
    golden = load_safetensors((folder / "golden.safetensors").read_bytes())
    for wrong in (golden["score"][4, -1] + 3e-5, np.float32(np.nan)):
        score = golden["score"].copy()
        score[4, -1] = wrong
        changed = {"golden.safetensors": save_safetensors({**golden, "score": score})}
        message = refused(tmp_path / f"{wrong}", network, changed, place[0])
        assert "row 4 scores" in message
        assert f"1 of {score.size} scores" in message


@pytest.mark.parametrize(
    ("golden", "message"),
    [
        (b"", "golden.safetensors: cannot be read"),
        (
            save_safetensors({"score": np.zeros(1, np.float32)}),
            "golden.safetensors: cannot be read: 'numeric'",
        ),
        (
            save_safetensors(
                {
                    "numeric": np.zeros((0, 5), np.float32),
                    "category": np.zeros((0, 5), np.uint64),
                    "score": np.zeros((0, 1), np.float32),
                }
            ),
            "score is float32 [0, 1]; it must be",
        ),
        (
            save_safetensors(
                {
                    "numeric": np.zeros((1, 2), np.float32),
                    "category": np.zeros((1, 5), np.uint64),
                    "score": np.zeros((1, 1), np.float32),
                }
            ),
            "golden.safetensors: cannot be scored",
        ),
        (
            save_safetensors(
                {
                    "numeric": np.zeros((1, 5), np.float32),
                    "category": np.zeros((1, 5), np.uint64),
                    "score": np.zeros((1, 2), np.float32),
                }
            ),
            "rows with a column for each of the outcomes ['join']",
        ),
        (
            save_safetensors(
                {
                    "numeric": np.zeros((100_000, 5), np.float32),
                    "category": np.zeros((100_000, 5), np.uint64),
                    "score": np.zeros((1, 1), np.float32),
                }
            ),
            "golden.safetensors: not as many rows as scores",
        ),
    ],
)
def test_damaged_golden_rows_refuse_the_artifact(tmp_path: Path, golden: bytes, message: str) -> None:
    rng = np.random.default_rng(5)
    network = random_network(rng, random_encoder(rng, 5, 2, 1), NetworkConfig(n_steps=3))
    assert message in refused(tmp_path, network, {"golden.safetensors": golden})


def test_the_sorting_graph_is_verified_too(tmp_path: Path, network: Network) -> None:
    rng = np.random.default_rng(9)
    num_outcomes = len(network.tabnet.tabnet.final_mapping.weight)
    other = random_network(rng, network.encoder, NetworkConfig(n_steps=3), num_outcomes)
    files, _ = artifact_files(other, rng)
    assert "row 0 scores" in refused(tmp_path, network, {"model_sorting.onnx": files["model_sorting.onnx"]})


@pytest.mark.parametrize("name", ["model.onnx", "model_sorting.onnx"])
def test_a_graph_that_is_not_ours_is_refused(
    tmp_path: Path, network: Network, folder: Path, name: str
) -> None:
    message = refused(tmp_path / "1", network, {name: b"not a graph"})
    assert f"{name} is not a supported graph: it is not an ONNX file" in message
    model = onnx.load_from_string((folder / name).read_bytes())
    model.graph.output.pop()
    message = refused(tmp_path / "2", network, {name: model.SerializeToString()})
    assert f"{name} is not a supported graph" in message


def test_a_graph_with_data_outside_of_it_is_refused(tmp_path: Path, network: Network, folder: Path) -> None:
    model = onnx.load_from_string((folder / "model.onnx").read_bytes())
    convert_model_to_external_data(model, location="weights.safetensors", size_threshold=0)
    message = refused(tmp_path, network, {"model.onnx": model.SerializeToString()})
    assert "it has a tensor with the unsupported field 13, which may refer to other data or code" in message


def test_weights_that_do_not_fit_the_encoder_are_refused(tmp_path: Path, network: Network) -> None:
    for number, weights in enumerate((b"", save_safetensors({"other": np.zeros(3, np.float32)}))):
        message = refused(tmp_path / str(number), network, {"weights.safetensors": weights}, "torch")
        assert "cannot be scored with" in message


def test_an_altered_file_is_refused_before_it_is_scored(tmp_path: Path, network: Network) -> None:
    folder = write_artifact(tmp_path / "a", network, np.random.default_rng(6))
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    for place in PLACES:
        with pytest.raises(ArtifactRefused, match=r"model\.onnx is not the file"):
            load_scorer(folder, *place)
