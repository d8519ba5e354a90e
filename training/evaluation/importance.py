"""Feature importance: how much worse the model predicts if a feature's values are permuted.

In shapes, R is the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.matrix import Matrix
from training.data.dataset import Dataset
from training.evaluation.metrics import probability, row_logloss
from training.examination.examination import IGNORED, Examination

# Importance is measured on a sample of this many rows, which bounds the time.
MOST_ROWS = 20_000
SEED = 0
# So many features are named in words.
MOST_NAMED = 5
# A feature has a direction if at least this share of its changes moves the score in it.
SAME_WAY = 0.75

# Predicts P(label) `[R]` for the rows of a matrix.
Scorer = Callable[[Matrix], NDArray[np.floating]]


def importance(score: Scorer, data: Dataset, examination: Examination = IGNORED) -> list[dict[str, Any]]:
    """Return `feature`, `logloss` and `rises` for each feature, with the largest loss first.

    `logloss` is how much the logloss of labels as shown increases if the feature's values are
    permuted over the rows (Breiman 2001; Fisher, Rudin and Dominici 2019). It is about 0 for a
    feature that the model does not use. A feature that others can replace loses little, even if it
    is informative. All columns of a feature are permuted together.

    `rises` is the share of changed scores that rose where the number rose or fell where it fell. It
    is None for categories.

    At most `MOST_ROWS` rows are used, which are always the same for the same data.
    """
    rows = np.arange(len(data))
    if len(rows) > MOST_ROWS:
        rows = np.sort(np.random.default_rng(SEED).choice(rows, MOST_ROWS, replace=False))
    matrix, label, theta = data.matrix.rows(rows), data.label[rows], examination.at(data.position[rows])

    def logloss(scores: NDArray[np.floating]) -> float:
        return float(row_logloss(label, probability(scores * theta)).mean())

    order = np.random.default_rng(SEED).permutation(len(label))
    scores = score(matrix)
    whole = logloss(scores)
    none = slice(0)
    places = [(name, slice(i, i + 1), none) for i, name in enumerate(data.columns.numeric)]
    places += [(name, none, part) for name, part in data.columns.category_parts()]
    found = []
    for name, numeric, category in places:
        permuted = Matrix(matrix.numeric.copy(), matrix.category.copy())
        permuted.numeric[:, numeric] = matrix.numeric[order, numeric]
        permuted.category[:, category] = matrix.category[order, category]
        changed = score(permuted)
        # A category has no numeric column, so this is empty for it.
        way = (permuted.numeric - matrix.numeric)[:, numeric] * np.sign(changed - scores)[:, None]
        way = way[np.isfinite(way) & (way != 0)]
        rises = float((way > 0).mean()) if len(way) else None
        found.append({"feature": name, "logloss": logloss(changed) - whole, "rises": rises})
    return sorted(found, key=lambda line: -line["logloss"])


def moves(evaluation: Mapping[str, Any]) -> str:
    """Return what moves a score most, from the permutation importance of an evaluation."""
    lines = [line for line in evaluation["importance"] if line["logloss"] > 0][:MOST_NAMED]
    if not lines:
        return "The importance of features was not measured."
    parts = [f"{evaluation['labels'][line['feature']]} ({way(line['rises'])})" for line in lines]
    return (
        f"What moves a score most: {'; '.join(parts)}. They are ordered by how much the logloss rises if a feature's "
        "values are shuffled over these rows. They describe the model, not causes."
    )


def way(rises: float | None) -> str:
    """Return in words how a score moves as a value rises. `rises` is as in `importance`."""
    if rises is None:
        return "by value"
    named = {rises >= SAME_WAY: "raises it", rises <= 1 - SAME_WAY: "lowers it"}
    return named.get(True, "either way, by the other features")
