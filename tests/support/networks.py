"""Random encoders, networks in their trained state, rows for them, and small artifacts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serve.features.matrix import Matrix
from serve.model.artifact import save
from serve.model.encoder import Encoder, MultiColumn, NumericColumn, SingleColumn, entry_hash
from serve.model.graph import Calibration
from tests.support.pytorch_tabnet_networks import module_of
from training.examination.examination import IGNORED
from training.network.export import build, golden
from training.network.network import Network, NetworkConfig

# The networks are small, so a second thread would only wait, and longer on a busy machine.
torch.set_num_threads(1)

# Calibrations of the outcomes of a random network, in order.
CALIBRATIONS = (Calibration(0.7, -0.3), Calibration(1.4, 0.2), Calibration(0.4, -1.0))
# The outcomes of an artifact, each with the amount that a prediction of 1 stands for.
SCALES = {"join": 1.0, "stay": 60.0, "hide": 1.0}
VERSION = "20260102T030405Z-0a1b"


def random_encoder(rng: np.random.Generator, num_numeric: int, num_single: int, num_multi: int) -> Encoder:
    """Return columns with mixed transforms, indicators, vocabularies and embedding sizes."""
    return Encoder(
        tuple(
            NumericColumn(
                f"n{i}",
                "log1p" if rng.random() < 0.5 else "none",
                float(rng.normal()),
                float(rng.uniform(0.3, 3.0)),
                bool(rng.random() < 0.5),
            )
            for i in range(num_numeric)
        ),
        tuple(
            SingleColumn(f"s{i}", tuple(f"v{j}" for j in range(rng.integers(1, 9))), int(rng.integers(1, 5)))
            for i in range(num_single)
        ),
        tuple(
            MultiColumn(f"m{i}", 3, tuple(f"w{j}" for j in range(rng.integers(1, 5))))
            for i in range(num_multi)
        ),
    )


def random_config(rng: np.random.Generator, mask_type: Any) -> NetworkConfig:
    """Return one of the network shapes that a search tries."""
    num_layers = [(a, b) for a in range(4) for b in range(4) if a + b]
    n_shared, n_independent = num_layers[rng.integers(len(num_layers))]
    return NetworkConfig(
        width=int(rng.integers(1, 17)),
        n_steps=int(rng.integers(1, 6)),
        gamma=float(rng.uniform(1.0, 2.0)),
        mask_type=mask_type,
        n_shared=n_shared,
        n_independent=n_independent,
    )


def random_rows(
    rng: np.random.Generator, encoder: Encoder, num_rows: int
) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
    """Return rows with missing numbers, and with missing, unseen and known categories."""
    numeric = (rng.standard_normal((num_rows, len(encoder.numeric))) * 3).astype(np.float32)
    numeric[rng.random(numeric.shape) < 0.2] = np.nan
    vocabularies = [column.vocabulary for column in encoder.single]
    vocabularies += [column.vocabulary for column in encoder.multi for _ in range(column.width)]
    category = np.zeros((num_rows, encoder.columns.num_category), np.uint64)
    for k, vocabulary in enumerate(vocabularies):
        known = np.array([0, 123_456_789, *map(entry_hash, vocabulary)], np.uint64)
        category[:, k] = rng.choice(known, num_rows)
    return numeric, category


def random_network(
    rng: np.random.Generator, encoder: Encoder, config: NetworkConfig, num_outcomes: int = 1
) -> Network:
    """Return a network in eval mode, whose batch norms have seen rows.

    Its logits have a standard deviation of about 1.
    """
    torch.manual_seed(int(rng.integers(1 << 31)))
    network = Network(encoder, config, num_outcomes)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = 0.5
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, std=0.3)
    with torch.no_grad():
        for _ in range(4):
            x = inputs(network, *random_rows(rng, encoder, 128))
            logit, _ = network.tabnet(x)
        network.tabnet.tabnet.final_mapping.weight /= max(float(logit.std()), 0.1)
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean += 0.1 * torch.randn_like(norm.running_mean)
            norm.running_var *= 0.7 + 0.6 * torch.rand_like(norm.running_var)
    return network.eval()


def reference(network: Network) -> Any:
    """Return the same network in pytorch_tabnet, in the precision of this one."""
    module = module_of(network)
    # The package rounds its embeddings to float32. It also leaves its group matrices behind when
    # the module changes its precision.
    if next(network.parameters()).dtype == torch.float64:
        module.double().load_state_dict(network.tabnet.state_dict())
        for owner, name in (
            (module.embedder, "embedding_group_matrix"),
            (module.tabnet.encoder, "group_attention_matrix"),
        ):
            setattr(owner, name, getattr(owner, name).double())
    return module


def inputs(network: Network, numeric: NDArray[np.float32], category: NDArray[np.uint64]) -> torch.Tensor:
    """Return the network's training input for a matrix of rows."""
    parts = network.encoder.encode(numeric, category)
    return network.inputs(*(torch.from_numpy(part) for part in parts))


@torch.no_grad()
def trained_scores(
    network: Network,
    numeric: NDArray[np.float32],
    category: NDArray[np.uint64],
) -> NDArray[np.float32]:
    """Return calibrated predictions [R, O] from pytorch_tabnet itself."""
    return _calibrated(network, reference(network)(inputs(network, numeric, category))[0])


@torch.no_grad()
def tolerance(network: Network, numeric: NDArray[np.float32], category: NDArray[np.uint64]) -> float:
    """Return the tolerance for scores of these rows.

    It is 1e-5, plus three times the largest difference between the scores that pytorch_tabnet
    itself computes in float32 and in float64. The second part is needed because deep networks
    amplify rounding: after five steps some rows differ by more than 1e-5.
    """
    double = copy.deepcopy(network).double()
    score = _calibrated(network, reference(double)(inputs(network, numeric, category).double())[0])
    return 1e-5 + 3 * float(np.abs(score - trained_scores(network, numeric, category)).max())


def calibrations(network: Network) -> Sequence[Calibration]:
    """Return the calibration of each output of a network."""
    return CALIBRATIONS[: len(network.tabnet.tabnet.final_mapping.weight)]


def _calibrated(network: Network, logit: torch.Tensor) -> NDArray[Any]:
    a, b = torch.tensor([(one.a, one.b) for one in calibrations(network)]).T
    return torch.sigmoid(a * logit + b).numpy()


def weights(network: Network) -> dict[str, NDArray[Any]]:
    """Return the state dict as an artifact holds it."""
    return {name: value.detach().numpy() for name, value in network.tabnet.state_dict().items()}


def artifact_files(
    network: Network, rng: np.random.Generator, num_golden: int = 16
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files and the manifest of an artifact, for `serve.model.artifact.save`."""
    numeric, category = random_rows(rng, network.encoder, 2 * num_golden)
    files = {
        **build(network, calibrations(network)),
        "golden.safetensors": golden(network, calibrations(network), Matrix(numeric, category), num_golden),
        "surface.toml": b"",
        "evaluation.json": b"{}",
        "report.html": b"",
        "MODEL_CARD.md": b"",
    }
    manifest = {
        "version": VERSION,
        "surface": "tiny",
        "network": asdict(network.config),
        "outcomes": {
            name: {"scale": scale, "calibration": asdict(calibration), "examination": asdict(IGNORED)}
            for (name, scale), calibration in zip(SCALES.items(), calibrations(network), strict=False)
        },
        "seen_until_ms": 0,
        "suspects": [],
    }
    return files, manifest


def write_artifact(
    folder: Path, network: Network, rng: np.random.Generator, changed: Mapping[str, bytes] | None = None
) -> Path:
    """Write an artifact to `folder`, with some files replaced. The hashes match what is written."""
    files, manifest = artifact_files(network, rng)
    save(folder, {**files, **(changed or {})}, manifest)
    return folder


def geometric_logits(num_columns: int) -> NDArray[np.float32]:
    """Return logits [1, G] for which sparsemax needs many passes.

    Each logit is below the threshold of those before it, by more than its predecessor was.
    Therefore a step of Michelot's algorithm removes only one of them.
    """
    logits, gap = [0.0, -0.5], 5.6e-7
    while len(logits) < num_columns:
        logits.append((sum(logits) - 1.0) / len(logits) - gap)
        gap *= 0.9 * (len(logits) + 1)
    return np.float32([logits])
