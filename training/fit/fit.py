"""Fit: train, calibrate and measure a model on a log, and write it as an artifact."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serve.contract.validation import refuse_existing, refuse_file
from serve.features.matrix import Matrix
from serve.features.rows import Schema
from serve.features.surface import Surface
from serve.model import artifact
from training.data.dataset import Dataset
from training.evaluation.drift import STATISTICS, statistics
from training.evaluation.evaluate import assess
from training.evaluation.importance import importance
from training.evaluation.leakage import suspects
from training.evaluation.paired import MARGIN
from training.evaluation.report import model_card, report_page
from training.evaluation.verdict import verdict
from training.examination.examination import IGNORED, Examination
from training.fit.loop import FitConfig
from training.fit.prepare import encode_rows, prepare
from training.fit.progress import Progress
from training.fit.sizing import advice
from training.fit.trainer import train
from training.network import export
from training.network.calibrate import fit_platt
from training.network.model import Model


def fit(
    surface: Surface,
    log: Path,
    out: Path,
    configure: Callable[[int], FitConfig],
    *,
    storage: Path | None = None,
    memory_bytes: int | None = None,
    prepared_share: Callable[[float], None] = lambda share: None,
    progress: Progress,
) -> dict[str, Any]:
    """Train on `log`, calibrate and measure on its last tenth by time, and write an artifact.

    Returns the manifest. `configure` returns the settings for a number of training rows, as
    `training.fit.sizing.sized` does. `storage` keeps checkpoints from which a killed fit resumes;
    None means a temporary folder. Rows that would take more than `memory_bytes` (default: half of
    the free memory) are streamed from there. `prepared_share` is called with the share of features
    computed, and `progress` with each epoch.

    Raises:
        TabrankError: for an invalid log, too little data, or an `out` that exists.
    """
    refuse_existing(out)
    if storage is not None:
        refuse_file(storage)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tabrank-fit-") as temporary:
        storage = storage or Path(temporary)
        with prepare(surface, log, storage, memory_bytes=memory_bytes, progress=prepared_share) as prepared:
            encoder, held, num_rows = prepared.encoder, prepared.valid, len(prepared.train)
            config, examination = configure(num_rows), prepared.examination
            valid = encode_rows(encoder, held, examination)
            state = train(prepared.train, valid, encoder, config, storage=storage, progress=progress)
    model = Model.of(encoder, config.network, state.kept(config))
    calibration = fit_platt(model.logits(held.matrix), held.label, examination.at(held.position))
    model = dataclasses.replace(model, calibration=calibration)
    num_parameters = sum(parameter.numel() for parameter in model.network.parameters())
    return save(
        out,
        Schema(surface),
        model,
        config,
        held,
        "validation",
        examination=examination,
        seen=prepared.sample,
        rivals={},
        about={"history": state.history, "best_epoch": state.best_epoch},
        manifest={
            "rows": num_rows,
            "parameters": num_parameters,
            "advice": advice(state, config, num_rows, num_parameters),
            "counts": prepared.counts,
            "log": str(log.resolve()),
            "span_ms": prepared.span_ms,
            # The validation rows chose the epoch and the calibration.
            "seen_until_ms": int(held.ts_ms[-1]),
        },
        begun=begun,
    )


def save(
    out: Path,
    schema: Schema,
    model: Model,
    config: FitConfig,
    held: Dataset,
    part: str,
    *,
    examination: Examination = IGNORED,
    seen: Matrix,
    rivals: Mapping[str, Any],
    current: Examination = IGNORED,
    about: Mapping[str, Any],
    manifest: Mapping[str, Any],
    begun: float,
    margin: float = MARGIN,
) -> dict[str, Any]:
    """Measure a model on the rows of `held`, the `part` of the log, and write it as an artifact.

    Returns the manifest. `seen` are training rows, whose distributions the artifact keeps for later
    comparison (`training.evaluation.drift`). `rivals` are further scores of the held rows, by name;
    a model must not be worse than `current` among them by `margin` (`training.evaluation.paired`).
    Their scores too are P(label | looked at): with `examination`, that of the rows from which they
    learned; `current` has its own. `about` goes into `evaluation.json` and `manifest` into the
    manifest unchanged.
    """
    surface = schema.surface
    scores = {"model": model.probability(held.matrix), **rivals}
    curves = {"examination": examination, "current": current}
    evaluation = {
        **assess(held, scores, surface, **curves, encoder=model.encoder, margin=margin),
        "importance": importance(model, held, examination),
        STATISTICS: statistics(held.columns, seen, model.probability(seen)),
        **about,
    }
    whole: dict[str, Any] = {
        "version": artifact.new_version(time.time()),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "surface": surface.name,
        "surface_fingerprint": surface.fingerprint,
        "state_fingerprint": schema.fingerprint,
        "metrics": {part: evaluation["model"], "popular": evaluation["popular"]},
        "measured_on": part,
        "paired": evaluation["paired"],
        "gate": evaluation["paired"]["model-popular"]["gate"],
        f"{part}_rows": len(held),
        "network": dataclasses.asdict(config.network),
        "fit": {k: v for k, v in dataclasses.asdict(config).items() if k != "network"},
        "calibration": dataclasses.asdict(model.calibration),
        "examination": examination.to_json(),
        "verdict": verdict(evaluation),
        "suspects": [str(suspect) for suspect in suspects(held)],
        "git": git_revision(),
        **manifest,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    files = export.build(model.network, model.calibration)
    files["surface.toml"] = surface.text.encode()
    files["evaluation.json"] = json.dumps(evaluation, indent=1, allow_nan=False).encode()
    files["golden.safetensors"] = export.golden(model.network, model.calibration, held.matrix)
    files["MODEL_CARD.md"] = model_card(whole, evaluation).encode()
    files["report.html"] = report_page(whole, evaluation).encode()
    artifact.save(out, files, whole)
    return whole


def git_revision() -> str | None:
    """Return the source tree's revision, `-dirty` if it has changes; None if there is none."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
