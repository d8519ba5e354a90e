"""Feature importance: loss of quality by permutation.

Letter: R rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.matrix import Matrix
from training.data.dataset import Dataset
from training.evaluation.metrics import probability, row_logloss
from training.examination.examination import IGNORED, Examination

# Rows to measure on: a sample bounds the time.
MOST_ROWS = 20_000
SEED = 0

# P(label) `[R]` of the rows of a matrix.
Scorer = Callable[[Matrix], NDArray[np.floating]]


def importance(score: Scorer, data: Dataset, examination: Examination = IGNORED) -> list[dict[str, Any]]:
    """Return `feature`, `logloss`, `rises` of each feature, the largest loss first.

    `logloss` is the increase if a feature is permuted over the rows (Breiman 2001; Fisher, Rudin
    and Dominici 2019), which is about 0 for a feature that the model does not use. All columns of a
    feature move together. A feature that others can replace loses little, even if it is
    informative. The logloss is of labels as shown. `rises` is the share of changed scores that
    moved the way a number did; None for categories. At most `MOST_ROWS` rows are used, the same for
    the same data.
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
        # Empty for a category.
        way = (permuted.numeric - matrix.numeric)[:, numeric] * np.sign(changed - scores)[:, None]
        way = way[np.isfinite(way) & (way != 0)]
        rises = float((way > 0).mean()) if len(way) else None
        found.append({"feature": name, "logloss": logloss(changed) - whole, "rises": rises})
    return sorted(found, key=lambda line: -line["logloss"])
