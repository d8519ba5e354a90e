"""Fit: from a surface and a log to an artifact."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serve.artifact import new_version
from serve.artifact import save as save_artifact
from serve.encoder import Encoder
from serve.errors import TabrankError
from serve.features import Matrix
from serve.log import read_log, refuse_existing
from serve.state import Schema
from serve.surface import Surface
from training.calibrate import fit_platt
from training.dataset import Dataset, build
from training.encoding import category_strings, fit_encoder
from training.export import build as build_files
from training.export import golden
from training.loop import FitConfig, Rows
from training.metrics import Slates, measure, paired, reliability
from training.network import Network
from training.report import model_card, report_page
from training.trainer import Progress, Trained, train

VALIDATION_SHARE = 0.1  # the last tenth, by time


def fit(
    surface: Surface,
    log: Path,
    out: Path,
    config: FitConfig,
    *,
    storage: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Train on `log`, calibrate and measure on its last tenth by time, and write the artifact to `out`.

    Answers the manifest. `storage` keeps checkpoints, from which a killed fit goes on; a temporary folder if
    None.

    Raises:
        TabrankError: for a bad log, too little data, or an `out` that is there already.
    """
    refuse_existing(out)
    begun = time.perf_counter()
    schema = Schema(surface)
    table = read_log(log, surface)
    data = build(schema, table)
    rows, held = _by_time(data)
    encoder = fit_encoder(surface, data.columns, rows.matrix, category_strings(surface, table))
    with tempfile.TemporaryDirectory(prefix="tabrank-fit-") as temporary:
        trained = train(
            _encoded(encoder, rows),
            _encoded(encoder, held),
            encoder,
            config,
            storage=storage or Path(temporary),
            progress=progress,
        )
    network = _network(encoder, config, trained)
    logit = _logits(network, encoder, held.matrix)
    calibration = fit_platt(logit, held.label)
    probability = _probability(logit, calibration.a, calibration.b)
    slates = Slates(held.label, held.slate)
    measured = measure(slates, probability, is_probability=True)
    evaluation = {
        "history": trained.history,
        "best_epoch": trained.best_epoch,
        "reliability": reliability(held.label, probability),
        "paired": paired(slates, probability, held.popular),
        "popular": measure(slates, held.popular, is_probability=False),
    }
    manifest: dict[str, Any] = {
        "version": new_version(time.time()),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "surface": surface.name,
        "surface_fingerprint": surface.fingerprint,
        "state_fingerprint": schema.fingerprint,
        "metrics": {"validation": measured, "popular": evaluation["popular"]},
        "network": dataclasses.asdict(config.network),
        "fit": {k: v for k, v in dataclasses.asdict(config).items() if k != "network"},
        "calibration": {"a": calibration.a, "b": calibration.b},
        "git": git_revision(),
        "rows": len(rows),
        "validation_rows": len(held),
        "counts": data.counts,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    files = build_files(network, encoder, calibration)
    files["surface.toml"] = surface.text.encode()
    files["evaluation.json"] = json.dumps(evaluation, indent=1).encode()
    files["golden.safetensors"] = golden(network, calibration, held.matrix.numeric, held.matrix.category)
    files["MODEL_CARD.md"] = model_card(manifest, evaluation).encode()
    files["report.html"] = report_page(manifest, evaluation).encode()
    save_artifact(out, files, manifest)
    return manifest


def _by_time(data: Dataset) -> tuple[Dataset, Dataset]:
    """All but the last tenth of the rows by time, and that tenth; rows of one time stay together."""
    cut_ms = np.quantile(data.ts_ms, 1 - VALIDATION_SHARE, method="lower")
    before, after = np.flatnonzero(data.ts_ms < cut_ms), np.flatnonzero(data.ts_ms >= cut_ms)
    for name, part in (("training", before), ("validation", after)):
        num_positive = int(data.label[part].sum())
        if not 0 < num_positive < len(part):
            raise TabrankError(
                f"the {name} rows ({len(part)}) hold {num_positive} positives; "
                "both labels are needed: give a longer log"
            )
    return data.take(before), data.take(after)


def _encoded(encoder: Encoder, data: Dataset) -> Rows:
    return Rows(*encoder.encode(data.matrix.numeric, data.matrix.category), data.label, data.position)


def _network(encoder: Encoder, config: FitConfig, trained: Trained) -> Network:
    network = Network(encoder, config.network)
    network.tabnet.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in trained.weights.items()})
    return network.eval()


@torch.no_grad()
def _logits(network: Network, encoder: Encoder, matrix: Matrix) -> NDArray[np.float64]:
    parts = encoder.encode(matrix.numeric, matrix.category)
    x = network.inputs(*(torch.from_numpy(part) for part in parts))
    chunks = [network(chunk)[0] for chunk in torch.split(x, 16_384)]
    return torch.cat(chunks).numpy().astype(np.float64)


def _probability(logit: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-(a * logit + b))), np.float64)


def git_revision() -> str | None:
    """The source tree's revision, `-dirty` where it has changes; None outside of one."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
