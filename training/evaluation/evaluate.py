"""Evaluate an artifact on a log, beside `popular` and the baseline on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.features.kinds.counters import Rate
from serve.features.matrix import Matrix
from serve.features.registry import KINDS
from serve.features.rows import Schema
from serve.features.surface import Surface, read_surface
from serve.log.reader import read_log
from serve.model.artifact import load as load_artifact
from serve.model.encoder import Encoder
from serve.model.scorers import load_scorer
from training.data.dataset import Dataset, Progress, build
from training.data.draws import drawn_weights
from training.evaluation.expected_labels import expected_labels
from training.evaluation.metrics import Contender, Values, calibrated, reliability
from training.evaluation.paired import MARGIN, bounds, paired
from training.evaluation.rivals import lightgbm
from training.evaluation.slates import Slates
from training.evaluation.slices import slices
from training.examination.examination import IGNORED, Examination

# Rows to score at once, which bounds memory.
CHUNK = 4_096
# An encoder without a vocabulary, by which categories have no name but their hash.
NO_NAMES = Encoder(())


def assess(
    data: Dataset,
    scores: Mapping[str, Values],
    surface: Surface,
    *,
    examination: Examination = IGNORED,
    current: Examination = IGNORED,
    encoder: Encoder = NO_NAMES,
    margin: float = MARGIN,
) -> dict[str, Any]:
    """Measure each contender on the rows of `data`; return plain data for JSON.

    Null stands for a measure that the rows do not define. `scores` `[N]` are by name: `model`, and
    rivals whose scores are probabilities too; `popular`, and the `baseline` of a surface that has
    one, are added from the data. A score is P(label | looked at). Logloss, ECE and reliability are
    of the label as shown: of the score times the `examination` of the row's position, for the
    contender `current` its own. The result holds

    * `rows`, `slates` (that can be ranked), `positives`, `span_ms` [first, last], and the task:
      `label`, `popular_feature`, `features` ({name: kind}) and `labels` ({name: words}).
    * `contenders`: the names; under each name its measures (`Contender.measures`),
      `expected_labels` first.
    * `expected_labels`: that of `training.evaluation.expected_labels`.
    * `intervals`: {name: {measure: [low, high]}}, 95 %.
    * `paired`: {"model-<rival>": ...} of `training.evaluation.paired`. `popular` and `baseline`
      have the logloss of a calibration that favours them, `metrics.calibrated`. With `current`
      among the scores, its pair has `rows`, `margin` and their `bounds`.
    * `curves`: `reliability` of the model.
    * `slices` of `training.evaluation.slices`; `encoder` names the categories in them.
    """
    slates = Slates(data.label, data.slate, data.viewer)
    rules = data.rules
    given = {"model": scores["model"], **rules, **scores}
    is_rate = isinstance(surface.features[surface.popular], Rate)
    theta = {name: (current if name == "current" else examination).at(data.position) for name in given}
    # A rate counts labels as shown.
    theta["popular"] = np.ones(len(data))
    chances = scores.keys() | ({"popular"} if is_rate else set())
    contenders = {
        name: Contender.of(slates, values, values * theta[name] if name in chances else None)
        for name, values in given.items()
    }
    fitted = {name: calibrated(data.label, rule, theta["model"]) for name, rule in rules.items()}
    fair = {name: Contender.of(slates, rule, fitted[name]) for name, rule in rules.items()}
    earns = expected_labels(contenders, data.position, examination, data.weight)
    kinds = {cls: kind for kind, cls in KINDS.items()}
    result: dict[str, Any] = {
        "rows": len(data),
        "slates": int(slates.rankable.sum()),
        "positives": int(data.label.sum(dtype=np.float64)),
        "span_ms": [int(data.ts_ms.min()), int(data.ts_ms.max())],
        "label": {"event": surface.primary.event, "within_ms": surface.primary.within_ms},
        "popular_feature": surface.popular,
        "features": {name: kinds[type(kind)] for name, kind in surface.features.items()},
        "labels": {name: kind.label for name, kind in surface.features.items()},
        "contenders": list(contenders),
        "expected_labels": earns.about,
        "intervals": {},
        "paired": {},
    }
    for name, contender in contenders.items():
        value, interval = earns.value(name)
        result[name] = {"expected_labels": value} | contender.measures()
        result["intervals"][name] = {"expected_labels": interval} | contender.intervals()
        if name != "model":
            rival, gain = fair.get(name, contender), earns.difference("model", name)
            pair = paired(contenders["model"], rival, gain, is_learned=examination.source == "learned")
            result["paired"][f"model-{name}"] = pair
    if pair := result["paired"].get("model-current"):
        rate = result["positives"] / len(data)
        limits = bounds(pair, result["model"], result["current"], rate, margin)
        pair |= {"rows": len(data), "margin": margin, "bounds": limits}
    result["curves"] = {"reliability": reliability(data.label, given["model"] * theta["model"])}
    result["slices"] = slices(data, contenders["model"], contenders["popular"], surface, encoder)
    return result


def evaluate(
    model: Path, history: Path | None, log: Path, *, baselines: bool, progress: Progress = lambda share: None
) -> dict[str, Any]:
    """Return the result of `assess` for `model`, `popular` and the baseline on the rows of `log`.

    With `baselines` also for `lightgbm`, tuned and trained on `history`'s rows with the same
    features and the model's examination of positions. The state starts from `history` and moves
    with the log.

    Raises:
        TabrankError: for an invalid artifact or log, and for `baselines` without a history.
    """
    if baselines and history is None:
        raise TabrankError("--baselines: LightGBM trains on the history; give --history LOG")
    artifact = load_artifact(model)
    surface = read_surface((model / "surface.toml").read_text(), str(model / "surface.toml"))
    schema, (examination, *_) = Schema(surface), Examination.of(artifact.manifest)
    past = read_log(history, surface) if history else None
    rows = read_log(log, surface)
    data = build(schema, rows, history=past, weights=drawn_weights(log, rows), progress=progress)
    data = data.of(0)
    scores: dict[str, Values] = {"model": score(model, data.matrix)[:, 0]}
    if baselines and past is not None:
        scores["lightgbm"] = lightgbm(artifact.encoder, build(schema, past).of(0), examination)(data.matrix)
    return {
        "rows_seen_in_training": int((data.ts_ms <= artifact.manifest["seen_until_ms"]).sum()),
        "version": artifact.version,
        "surface": surface.name,
        "counts": data.counts,
        **assess(data, scores, surface, examination=examination, encoder=artifact.encoder),
    }


def score(model: Path, matrix: Matrix) -> NDArray[np.float32]:
    """Score a matrix's rows with the artifact's serving graph: shares `[N, O]`."""
    scorer = load_scorer(model, "onnx")
    parts = [
        scorer.score(matrix.numeric[i : i + CHUNK], matrix.category[i : i + CHUNK])
        for i in range(0, len(matrix.numeric), CHUNK)
    ]
    return np.concatenate(parts) if parts else np.empty((0, len(scorer.outcomes)), np.float32)
