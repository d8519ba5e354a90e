"""Drift of served rows from a model's training rows, by the population stability index.

An artifact stores the distribution of each feature over its training rows, and of its scores, as
shares of cells; the rows of a log are counted in the same cells. Letters: N rows, F numeric and K
category columns.
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

# Cells of equal count for a number.
NUM_CELLS = 10
# Categories with a cell of their own.
MOST_COMMON = 20
# Share assumed for an empty cell, whose logarithm would be infinite.
LEAST = 1e-4
# Usual thresholds: below the first nothing has moved, above the second the population is another
# one (Siddiqi 2006, "Credit Risk Scorecards", chapter 9).
MOVED, CHANGED = 0.1, 0.25
# Key of the distributions in `evaluation.json`.
STATISTICS = "statistics"
# Name of the scores beside those of features.
SCORES = "the scores"

Shares = NDArray[np.float64]


def statistics(columns: Columns, matrix: Matrix, score: NDArray[np.floating]) -> dict[str, Any]:
    """Return the distributions of training rows and of their scores `[N]`; plain data for JSON."""
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
    """Return the index of each feature and of the scores `[N]` against `statistics` of training.

    `ranking` `[N]` tells the rankings of the rows apart. The index is None on fewer rows than
    `rows_needed`; `not_judged` then has these numbers. Rows of a ranking with one value are one
    observation, such as its viewer's language. Its weight is their number, so the rows that count
    are the effective ones of Kish (1965, "Survey sampling"): (Σ weight)² / Σ weight².
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
    """Return the rows N on which rows as in training seldom get an index of `MOVED`.

    Without a change, the index is about (1 / N + 1 / M) times a χ² of one degree of freedom less
    than there are cells, with M training rows (Yurdakul and Naranjo 2020, "Statistical properties
    of the population stability index", Journal of Risk Model Validation 14 (4)). N is for its mean
    and three standard deviations; None if M alone is too small.
    """
    freedom = max(int(np.count_nonzero(shares)) - 1, 1)
    left = MOVED / (freedom + 3 * math.sqrt(2 * freedom)) - 1 / training_rows
    return math.ceil(1 / left) if left > 0 else None


def psi(expected: Shares, found: Shares) -> float:
    """Return the population stability index: Σ (found − expected) · ln(found / expected).

    The sum is over cells. Credit scoring gave this name to the symmetric divergence of Jeffreys
    (1946); see Siddiqi 2006, chapter 9.
    """
    expected, found = np.maximum(expected, LEAST), np.maximum(found, LEAST)
    return float(np.sum((found - expected) * np.log(found / expected)))


def reading(index: float) -> str:
    """Return the usual interpretation of an index."""
    return "as in training" if index < MOVED else "has moved" if index < CHANGED else "has changed"


def _numbers(values: NDArray[np.float32]) -> dict[str, Any]:
    """Return the cells of a number `[N]` and their shares.

    The cells are: missing; the most common value, if it would fill a cell alone; between deciles.
    """
    # Infinite values belong to the outermost cells.
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
    """Return the shares of missing, of the common value, and of cells with their upper decile."""
    return cell_counts(cells, values) / max(len(values), 1)


def _categories(hashes: NDArray[np.uint64]) -> dict[str, Any]:
    """Return the cells of the categories `[N, width]`: rows without one, common ones, others."""
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
