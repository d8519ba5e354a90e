"""Fit: train, calibrate and measure a model on a log, and write it as an artifact."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from serve.contract.validation import refuse_existing
from serve.features.matrix import Matrix
from serve.features.rows import Schema
from serve.features.surface import Surface
from serve.model import artifact
from training.data.dataset import Dataset, Progress
from training.data.scratch import folder
from training.evaluation.drift import STATISTICS, statistics
from training.evaluation.evaluate import assess
from training.evaluation.foresight import doubted
from training.evaluation.importance import importance
from training.evaluation.metrics import Values, fit_if_better
from training.evaluation.outcomes import utility
from training.evaluation.report import model_card, report_page
from training.evaluation.verdict import verdict
from training.examination.examination import Examination
from training.fit.loop import FitConfig
from training.fit.prepare import encode_rows, prepare, take_evenly
from training.fit.sizing import advice
from training.fit.teaching import taught
from training.fit.trainer import train
from training.network import export
from training.network.model import Model
from training.terminal import PARTS


def fit(
    surface: Surface,
    log: Path,
    out: Path,
    configure: Callable[[int], FitConfig],
    progress: Progress = lambda share: None,
) -> dict[str, Any]:
    """Train on a log, calibrate and measure on its last tenth by time, and write an artifact.

    Args:
        configure: returns the settings for a number of training rows, as
            `training.fit.sizing.sized` does.
        progress: is called with the share of the features that are computed.

    Returns:
        The artifact's manifest.

    Raises:
        TabrankError: the log is invalid, there is too little data, or `out` exists.
    """
    refuse_existing(out)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tabrank-fit-", dir=folder()) as temporary:
        PARTS.begin("reading the log and computing features")
        prepared = prepare(surface, log, progress)
        encoder, held, num_rows = prepared.encoder, prepared.valid, len(prepared.train)
        config, examinations = configure(num_rows), prepared.examinations
        valid = encode_rows(encoder, held, examinations)
        PARTS.begin("training LightGBM, which teaches the network")
        rows = taught(prepared.train, prepared.rows, encoder, examinations)
        PARTS.begin(f"training on {num_rows:,} rows")
        state = train(rows, valid, encoder, config, storage=Path(temporary))
    PARTS.begin("measuring it on the validation rows")
    model = with_calibration(Model.of(encoder, config.network, state.kept(config)), held, examinations)
    num_parameters = sum(parameter.numel() for parameter in model.network.parameters())
    fitted = Fitted(
        Schema(surface),
        model,
        config,
        held,
        "validation",
        seen=take_evenly(prepared.rows.matrix),
        begun=begun,
        examinations=examinations,
        about={"history": state.history, "best_epoch": state.best_epoch},
        sampled_from=prepared.num_valid,
        manifest={
            "log": str(log.resolve()),
            "rows": num_rows,
            "span_ms": (int(prepared.rows.ts_ms[0]), int(prepared.rows.ts_ms[-1])),
            # The validation rows count as seen, because they chose the epoch and the calibration.
            "seen_until_ms": int(held.ts_ms[-1]),
            "parameters": num_parameters,
            "advice": advice(state, config, num_rows, num_parameters),
            "teachers": int(rows is not prepared.train),
            "suspects": doubted(prepared.rows.of(0), surface),
        },
    )
    return save(fitted, out)


def with_calibration(model: Model, held: Dataset, examinations: Sequence[Examination]) -> Model:
    """Return the model with calibrations fitted to the rows `held`, on which it was not trained."""
    calibrations = []
    for k, examination in enumerate(examinations):
        rows = held.of(k)
        logit, theta = model.logits(rows.matrix)[:, k], examination.at(rows.position)
        calibrations.append(fit_if_better(logit, rows.label, theta, rows.viewer))
    return replace(model, calibrations=calibrations)


@dataclass(frozen=True)
class Fitted:
    """A trained model, what it was trained on, and the rows that measure it."""

    schema: Schema
    model: Model
    config: FitConfig
    # The rows that measure the model, and which part of the log they are.
    held: Dataset
    part: Literal["validation", "test"]
    # Training rows, whose distributions the artifact keeps (see `training.evaluation.drift`).
    seen: Matrix
    # Further entries of the manifest. Among them are `log`; the number of training `rows`;
    # `span_ms`, the times of the first and the last of these; `seen_until_ms`, the time of the last
    # row that had any influence; and `suspects`, what `doubted` found.
    manifest: Mapping[str, Any]
    # When the work began, by the clock `time.perf_counter`.
    begun: float
    examinations: Sequence[Examination]
    # Predictions [N, O] of rivals on the held rows, by name. They are shares if looked at, by the
    # model's examinations; those of `current` are by its own.
    rivals: Mapping[str, Values] = field(default_factory=dict)
    current: Sequence[Examination] | None = None
    # If `held` is a sample, the number of rows from which it was taken.
    sampled_from: int = 0
    # Further entries of `evaluation.json`.
    about: Mapping[str, Any] = field(default_factory=dict)


def save(fitted: Fitted, out: Path) -> dict[str, Any]:
    """Measure a model, write it as an artifact, and return the manifest."""
    surface, model, config = fitted.schema.surface, fitted.model, fitted.config
    held, rows = fitted.held, fitted.held.of(0)
    evaluation = {
        **assess(
            held,
            {"model": model.shares(held.matrix), **fitted.rivals},
            surface,
            examinations=fitted.examinations,
            current=fitted.current,
            encoder=model.encoder,
        ),
        "importance": importance(lambda matrix: model.shares(matrix)[:, 0], rows, fitted.examinations[0]),
        STATISTICS: statistics(held.columns, fitted.seen, utility(surface, model.shares(fitted.seen))),
        "suspects": fitted.manifest["suspects"],
        "known_before": [path for path, one in surface.paths.items() if one.known_before],
        **fitted.about,
    }
    if fitted.sampled_from > len(held):
        evaluation["sampled_from"] = fitted.sampled_from
    manifest: dict[str, Any] = {
        "version": artifact.new_version(time.time()),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "surface": surface.name,
        "surface_fingerprint": surface.fingerprint,
        "state_fingerprint": fitted.schema.fingerprint,
        "metrics": {fitted.part: evaluation["model"], "popular": evaluation["popular"]},
        "measured_on": fitted.part,
        "paired": evaluation["paired"],
        "gate": evaluation["paired"]["model-popular"]["gate"],
        f"{fitted.part}_rows": len(rows),
        "network": asdict(config.network),
        "fit": {k: v for k, v in asdict(config).items() if k != "network"},
        # In the order of the network's outputs.
        "outcomes": {
            name: {"scale": outcome.scale, "calibration": asdict(map_), "examination": asdict(theta)}
            for (name, outcome), map_, theta in zip(
                surface.predicted.items(), model.calibrations, fitted.examinations, strict=True
            )
        },
        "verdict": verdict(evaluation),
        "git": git_revision(),
        **fitted.manifest,
        "seconds": round(time.perf_counter() - fitted.begun, 1),
    }
    files = export.build(model.network, model.calibrations)
    files["surface.toml"] = surface.text.encode()
    files["evaluation.json"] = json.dumps(evaluation, indent=1, allow_nan=False).encode()
    files["golden.safetensors"] = export.golden(model.network, model.calibrations, held.matrix)
    files["MODEL_CARD.md"] = model_card(manifest, evaluation).encode()
    files["report.html"] = report_page(manifest, evaluation).encode()
    artifact.save(out, files, manifest)
    return manifest


def git_revision() -> str | None:
    """Return the source's git revision, with `-dirty` if it has changes; None if there is none."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
