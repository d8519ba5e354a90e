"""Rows of the small surface without a log, and their evaluation as an artifact stores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from serve.contract.hashing import hash64
from serve.features.matrix import Columns, Features, Matrix
from serve.features.rows import Schema
from serve.features.surface import Surface
from training.data.dataset import Dataset
from training.evaluation.evaluate import assess
from training.evaluation.metrics import Values
from training.examination.examination import IGNORED, Examination

LANGUAGES = ("en", "fr", "de")


def dataset(surface: Surface, num_slates: int = 400, per: int = 6, seed: int = 0) -> Dataset:
    """Return rows whose labels depend only on `topic_affinity` and, less, on `audience`."""
    rng = np.random.default_rng(seed)
    columns: Columns = Features(Schema(surface)).columns
    num_rows = num_slates * per
    numeric = rng.normal(size=(num_rows, len(columns.numeric))).astype(np.float32)
    category = np.zeros((num_rows, columns.num_category), np.uint64)
    language = np.repeat(rng.integers(0, len(LANGUAGES), num_slates), per)
    hashes = np.array([hash64(name) for name in LANGUAGES], np.uint64)
    category[:, columns.single.index("viewer_language")] = hashes[language]
    logit = 1.5 * numeric[:, columns.numeric.index("topic_affinity")] - 1
    logit = logit + 0.7 * numeric[:, columns.numeric.index("audience")]
    slate = np.repeat(np.arange(num_slates), per)
    return Dataset(
        columns=columns,
        matrix=Matrix(numeric, category),
        outcomes=((rng.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(np.float32))[:, None],
        slate=slate,
        viewer=np.repeat(np.arange(num_slates) // 2, per),
        shown=np.zeros(num_rows, np.int64),
        ts_ms=slate * (24 * 3_600_000 // num_slates),
        popular=numeric[:, columns.numeric.index("audience")],
        position=np.tile(np.arange(per), num_slates),
        viewer_seen=np.repeat(rng.integers(0, 3, num_slates), per),
        candidate_seen=rng.integers(0, 400, num_rows),
        request_ids=[str(i) for i in range(num_slates)],
        candidate_ids=["c"],
    )


def truth(data: Dataset, matrix: Matrix | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the probabilities from which the labels were drawn."""
    numeric, names = (matrix or data.matrix).numeric.astype(np.float64), data.columns.numeric
    logit = 1.5 * numeric[:, names.index("topic_affinity")] + 0.7 * numeric[:, names.index("audience")] - 1
    return 1 / (1 + np.exp(-logit))


def judge(
    data: Dataset,
    scores: Mapping[str, Values],
    surface: Surface,
    *,
    examination: Examination = IGNORED,
    current: Examination | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Return the evaluation of scores `[N]` of a single outcome."""
    shares = {name: np.asarray(score)[:, None] for name, score in scores.items()}
    theirs = current and [current]
    return assess(data, shares, surface, examinations=[examination], current=theirs, **settings)


def evaluation(surface: Surface) -> dict[str, Any]:
    """Return an evaluation as an artifact stores it, with a search."""
    data = dataset(surface)
    rival = 0.8 * truth(data) + 0.05
    history = [
        {"epoch": i, "train_logloss": 0.5 / i, "valid_logloss": 0.5 / i + 0.01, "valid_auc": 0.7}
        for i in (1, 2, 3)
    ]
    names = [*data.columns.numeric, *data.columns.single]
    board = [
        {
            "name": f"<trial {i}>",
            "kind": "tabnet",
            "valid_logloss": 0.5 - 0.01 * i,
            "valid_auc": 0.7,
            "valid_ndcg": None,
            "us_per_candidate": 1.0 + i,
            "fits": i < 4,
            "epochs": 3,
            "config": {"width": 8 * i, "n_steps": 2, "mask_type": "entmax", "learning_rate": 0.0123456},
        }
        for i in range(1, 6)
    ]
    about = {"name": "LightGBM", "kind": "lightgbm", "us_per_candidate": None, "fits": False}
    board.append({**board[0], **about, "epochs": None, "config": {}})
    return {
        **judge(data, {"model": truth(data), "lightgbm": rival}, surface),
        "history": history,
        "best_epoch": 3,
        "importance": [{"feature": n, "logloss": 0.02, "rises": 0.5} for n in names],
        "search": {
            "winner": board[2]["name"],
            "config": board[2]["config"],
            "budget_s": 900.0,
            "tuning_share": 0.1,
            "test_looks": 1,
            "max_us_per_candidate": 4.5,
            "leaderboard": board,
        },
    }


def trial(
    number: int, loss: float | None, *, share: float = 1.0, failed: str | None = None, **given: Any
) -> dict[str, Any]:
    """Return a trial of a search as its report holds it; `given` are parameters of its network."""
    point = {"width": 8, "mask_type": "entmax", "learning_rate": 0.01, "epochs": 20} | given
    measured = {"valid_auc": 0.7, "valid_ndcg": None, "us_per_candidate": 1.25, "seconds": 3.0}
    about = {"name": f"TabNet {number}", "kind": "tabnet", "valid_logloss": loss, "rows": 1_234_567.0}
    return about | measured | {"share": share, "failed": failed, "point": point}


TRIALS = [
    trial(1, 0.30, width=8, learning_rate=0.01),
    trial(2, 0.25, width=16, learning_rate=0.3),
    trial(3, 0.20, width=32, learning_rate=0.02),
    trial(4, None, share=0.0, failed="Diverged: the loss is not finite"),
    trial(5, 0.40, share=0.25, width=16, learning_rate=0.05),
    trial(6, 0.21, width=32, learning_rate=0.2),
    trial(7, 0.31, width=8, learning_rate=0.4),
    trial(8, 0.26, width=16, learning_rate=0.015),
]
