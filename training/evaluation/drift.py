"""Measure how far served rows have drifted from a model's training rows.

The measure is the population stability index. An artifact stores how each feature and its scores
were distributed over the training rows, as the shares of cells, such as the ranges between deciles.
The rows of a log are counted in the same cells.

In shapes, N is the number of rows, F of numeric columns and K of category columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from serve.features.matrix import Columns, Matrix
from serve.model.encoder import entry_hash, vocabulary_entry
from serve.rollout.score_comparison import cell_counts

# A number is divided into this many cells of equal count.
NUM_CELLS = 10
# This many of the most frequent categories have a cell of their own.
MOST_COMMON = 20
# An empty cell counts with this share, because the logarithm of 0 is infinite.
LEAST = 1e-4
# The usual thresholds. Below the first, nothing has moved; above the second, it is another
# population (Siddiqi 2006, "Credit Risk Scorecards", chapter 9).
MOVED, CHANGED = 0.1, 0.25
# The key of the distributions in `evaluation.json`.
STATISTICS = "statistics"
# The name under which the scores stand beside the features.
SCORES = "the scores"

Shares = NDArray[np.float64]


def statistics(columns: Columns, matrix: Matrix, score: NDArray[np.floating]) -> dict[str, Any]:
    """Return the distributions of training rows and of their scores `[N]`, as data for JSON."""
    return {
        "rows": len(score),
        "numeric": {name: _numbers(matrix.numeric[:, j]) for j, name in enumerate(columns.numeric)},
        "category": {name: _categories(matrix.category[:, part]) for name, part in columns.category_parts()},
        "score": _numbers(np.asarray(score, np.float32)),
    }


def drift(
    made_from: Mapping[str, Any],
    columns: Columns,
    matrix: Matrix,
    score: NDArray[np.floating],
    ranking: NDArray[np.int64],
) -> dict[str, Any]:
    """Return the index of each feature and of the scores `[N]`, compared with the training rows.

    `made_from` holds the `statistics` of training, and `ranking` `[N]` the number of each row's
    ranking. With fewer rows than `rows_needed`, the index is None, and `not_judged` says how many
    rows there are and how many are needed.

    Rows of one ranking with the same value, such as the viewer's language, are a single
    observation. Its weight is their number. So the number of rows is the effective one of Kish
    (1965, "Survey sampling"), (Σ weight)² / Σ weight². For example, one ranking of 50 rows in the
    same language counts as one row.
    """
    numeric, category = made_from["numeric"], made_from["category"]
    parts: list[tuple[str, Mapping[str, Any], NDArray[Any]]]
    parts = [(SCORES, made_from["score"], np.asarray(score, np.float32))]
    parts += [(name, numeric[name], matrix.numeric[:, j]) for j, name in enumerate(columns.numeric)]
    parts += [(name, category[name], matrix.category[:, part]) for name, part in columns.category_parts()]
    found: dict[str, float | None] = {}
    not_judged: dict[str, dict[str, int | None]] = {}
    for name, cells, values in parts:
        observed = pd.DataFrame(values).assign(ranking=ranking)
        weight = observed.value_counts(sort=False, dropna=False).to_numpy()
        rows = int(weight.sum() ** 2 / (weight @ weight))
        needed = rows_needed(cells["shares"], made_from["rows"])
        if needed is None or rows < needed:
            found[name], not_judged[name] = None, {"rows": rows, "needed": needed}
        else:
            shares = _category_shares if name in category else _number_shares
            found[name] = psi(np.array(cells["shares"]), shares(cells, values))
    return {
        "rows": len(score),
        "training_rows": made_from["rows"],
        "score": found.pop(SCORES),
        "features": found,
        "judged": sum(index is not None for index in found.values()),
        "not_judged": not_judged,
    }


def rows_needed(shares: Sequence[float], training_rows: int) -> int | None:
    """Return how many rows N are needed so that unchanged rows seldom reach the index `MOVED`.

    Without a change, the index is about (1 / N + 1 / M) times a χ² variable, where M is the number
    of training rows and the degrees of freedom are the number of cells minus one (Yurdakul and
    Naranjo 2020, "Statistical properties of the population stability index", Journal of Risk Model
    Validation 14 (4)). N is chosen such that the mean plus three standard deviations stays below
    `MOVED`. Returns None if M alone is too small for that.
    """
    freedom = max(int(np.count_nonzero(shares)) - 1, 1)
    left = MOVED / (freedom + 3 * math.sqrt(2 * freedom)) - 1 / training_rows
    return math.ceil(1 / left) if left > 0 else None


def psi(expected: Shares, found: Shares) -> float:
    """Return the population stability index, Σ (found − expected) · ln(found / expected).

    The sum is over cells. It is the symmetric divergence of Jeffreys (1946), which has this name in
    credit scoring (Siddiqi 2006, chapter 9).
    """
    expected, found = np.maximum(expected, LEAST), np.maximum(found, LEAST)
    return float(np.sum((found - expected) * np.log(found / expected)))


def reading(index: float) -> str:
    """Return the usual interpretation of an index."""
    return "as in training" if index < MOVED else "has moved" if index < CHANGED else "has changed"


def _numbers(values: NDArray[np.float32]) -> dict[str, Any]:
    """Return the cells of a number `[N]`, and their shares.

    There is a cell for missing values, one for the most common value if it would fill a cell alone,
    and one between each two deciles of the other values.
    """
    # Infinite values count in the outermost cells, but do not define them.
    present = values[np.isfinite(values)]
    distinct, counts = np.unique(present, return_counts=True)
    most = int(counts.argmax()) if len(counts) else 0
    common = float(distinct[most]) if len(counts) and counts[most] * NUM_CELLS >= len(values) else None
    rest = present if common is None else present[present != np.float32(common)]
    edges: Sequence[float] = []
    if len(rest):
        inner = np.arange(1, NUM_CELLS) / NUM_CELLS
        deciles = np.unique(np.quantile(rest, inner, method="lower"))
        edges = deciles[deciles < rest.max()].tolist()
    cells: dict[str, Any] = {"common": common, "deciles": edges}
    return cells | {"shares": _number_shares(cells, values).tolist()}


def _number_shares(cells: Mapping[str, Any], values: NDArray[np.float32]) -> Shares:
    """Return the shares of missing values, of the common value, and of cells between deciles."""
    return cell_counts(cells, values) / max(len(values), 1)


def _categories(hashes: NDArray[np.uint64]) -> dict[str, Any]:
    """Return the cells of categories `[N, width]`: none, each frequent category, and all others."""
    values, counts = np.unique(hashes[hashes != 0], return_counts=True)
    order = np.lexsort((values, -counts))[:MOST_COMMON]
    cells: dict[str, Any] = {"values": [vocabulary_entry(int(values[i])) for i in order]}
    return cells | {"shares": _category_shares(cells, hashes).tolist()}


def _category_shares(cells: Mapping[str, Any], hashes: NDArray[np.uint64]) -> Shares:
    """Return the shares of rows without a category, of each named category, and of the rest.

    The total is the number of categories plus the number of rows without one.
    """
    present = hashes[hashes != 0]
    named = [int((present == entry_hash(entry)).sum()) for entry in cells["values"]]
    counts = np.array([int((hashes == 0).all(axis=1).sum()), *named, len(present) - sum(named)], np.float64)
    return np.asarray(counts / max(float(counts.sum()), 1.0), np.float64)
