"""Evaluate an artifact on a log, always beside `popular` and on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.artifact import Artifact
from serve.artifact import load as load_artifact
from serve.errors import TabrankError
from serve.kinds import Rate
from serve.log import read_log
from serve.scorers import load_scorer
from serve.state import Schema
from serve.surface import read_surface
from training.dataset import Dataset, Progress, build
from training.metrics import Slates, measure, paired

CHUNK = 4_096
LIGHTGBM = {"n_estimators": 120, "num_leaves": 31, "verbose": -1, "n_jobs": 2, "random_state": 0}


def evaluate(
    model: Path, history: Path | None, log: Path, *, baselines: bool, progress: Progress = lambda share: None
) -> dict[str, Any]:
    """`model`, `popular` (its state moving with the log) and, with `baselines`, `lightgbm`, on `log`'s rows.

    The state starts from `history`; LightGBM is trained on `history`'s rows with the same features.

    Raises:
        TabrankError: for a bad artifact or log, and for `baselines` without a history to train on.
    """
    if baselines and history is None:
        raise TabrankError("--baselines: LightGBM is trained on the history; give --history LOG")
    artifact = load_artifact(model)
    surface = read_surface((model / "surface.toml").read_text(), str(model / "surface.toml"))
    schema = Schema(surface)
    past = read_log(history, surface) if history else None
    data = build(schema, read_log(log, surface), history=past, progress=progress)
    scores = score(model, data)
    slates = Slates(data.label, data.slate)
    result: dict[str, Any] = {
        "version": artifact.version,
        "surface": surface.name,
        "rows": len(data),
        "slates": len(slates.ndcg(scores)),
        "counts": data.counts,
        "model": measure(slates, scores, is_probability=True),
        "popular": measure(
            slates, data.popular, is_probability=isinstance(surface.features[surface.popular], Rate)
        ),
        "paired": {"model-popular": paired(slates, scores, data.popular)},
    }
    if baselines and past is not None:
        rival = lightgbm(artifact, build(schema, past), data)
        result["lightgbm"] = measure(slates, rival, is_probability=True)
        result["paired"]["model-lightgbm"] = paired(slates, scores, rival)
    return result


def score(model: Path, data: Dataset) -> NDArray[np.float32]:
    """The artifact's probabilities of the dataset's rows, by its serving graph."""
    scorer = load_scorer(model, "onnx")
    parts = [
        scorer.score(data.matrix.numeric[i : i + CHUNK], data.matrix.category[i : i + CHUNK])
        for i in range(0, len(data), CHUNK)
    ]
    return np.concatenate(parts)


def lightgbm(artifact: Artifact, train: Dataset, test: Dataset) -> NDArray[np.float64]:
    """LightGBM with the artifact's own columns: the outside bar."""
    from lightgbm import LGBMClassifier

    def columns(data: Dataset) -> NDArray[np.float32]:
        numeric, hot, index = artifact.encoder.encode(data.matrix.numeric, data.matrix.category)
        return np.concatenate([numeric, hot, index.astype(np.float32)], axis=1)

    num_single = len(artifact.encoder.single)
    inputs = columns(train)
    categorical = list(range(inputs.shape[1] - num_single, inputs.shape[1]))
    rival = LGBMClassifier(**LIGHTGBM)
    rival.fit(inputs, train.label, categorical_feature=categorical)
    return np.asarray(rival.predict_proba(columns(test))[:, 1], np.float64)
