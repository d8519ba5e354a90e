"""Reasons of a ranking: what each feature adds, compared with the slate's typical candidate.

Occlusion (Zeiler and Fergus 2014) from both ends: the mean of what a candidate loses in log-odds if
a feature takes the typical value, and of what the typical candidate gains from the candidate's
value. These are the last and the first step of the orders that a Shapley value averages (1953).

Shapes: C scored candidates, of which E are explained; N features; P pairs of a candidate and a
feature in which it is not typical; F numeric and K category columns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import numpy as np

from serve.features.matrix import Columns, Matrix
from serve.features.slots import F32, F64, I64, Bools
from serve.log.events import MAX_CALL_BYTES
from serve.model.scorer_cache import untimed
from serve.ranking.ranker import Slate

# Candidates explained, and rows of their batch: a Scorer takes about 10 ms for so many, and scores
# nothing else meanwhile.
MAX_EXPLAINED = 100
MAX_ROWS = 4_000
# Keep the logarithm finite where a float32 score is 0 or 1.
SMALLEST = 1e-7
# Digits of a contribution; beyond them scores differ by rounding.
DIGITS = 4


class Explained(NamedTuple):
    """Contributions `[E, N]` in log-odds of an answer's first candidates; NaN where a score is.

    `typical` is the row of the typical candidate.
    """

    typical: Matrix
    contributions: F64


async def explain(
    slate: Slate, columns: Columns, call: Callable[[str, bytes], Awaitable[bytes]], num_shown: int
) -> Explained | None:
    """Explain the candidates shown, with one call of the scorer; None if no model scored them.

    Raises:
        Exception: the exception of the call.
    """
    scored = np.flatnonzero(np.isfinite(slate.score))
    if slate.model is None or slate.matrix is None or not len(scored):
        return None
    shown = slate.order[: min(num_shown, MAX_EXPLAINED)]
    shown = np.searchsorted(scored, shown[np.isfinite(slate.score[shown])])
    occlusion = Occlusion(columns, slate.matrix.rows(scored), slate.score[scored], shown)
    answer = await call(slate.model, occlusion.rows.to_bytes())
    return occlusion.explained(untimed(answer, len(occlusion.rows.numeric))[0])


class Occlusion:
    """Rows that explain candidates, each once, and the contributions that follow from their scores.

    `matrix` holds the scored candidates, `score` `[C]` their scores, and `shown` the candidates to
    explain, best first; those whose rows exceed `MAX_ROWS` or a call's bytes are left out.
    """

    def __init__(self, columns: Columns, matrix: Matrix, score: F32, shown: I64) -> None:
        self._typical = typical = typical_row(columns, matrix)
        given = matrix.rows(shown)
        differs = (given.numeric != typical.numeric) & ~(np.isnan(given.numeric) & np.isnan(typical.numeric))
        starts = [part.start for _, part in columns.category_parts()]
        if starts:
            is_other = np.logical_or.reduceat(given.category != typical.category, starts, axis=1)
            differs = np.concatenate([differs, is_other], axis=1)
        # The typical row, and two for each pair.
        fits = 1 + 2 * differs.sum(axis=1).cumsum() <= min(MAX_ROWS, MAX_CALL_BYTES // columns.row_bytes)
        # [E, N]
        self._differs = differs[fits]
        candidate, feature = np.nonzero(self._differs)
        self._odds = _log_odds(score[shown[candidate]])
        # The feature of each column: [P, F] and [P, K] flag the pair's own.
        num_numeric = len(columns.numeric)
        owners = num_numeric - 1 + np.searchsorted(starts, np.arange(columns.num_category), "right")
        own = feature[:, None] == np.arange(num_numeric), feature[:, None] == owners
        given = given.rows(candidate)
        rows = Matrix.stacked([typical, _mixed(given, typical, *own), _mixed(typical, given, *own)])
        # Many candidates share a value.
        packed = np.concatenate([rows.category.view(np.uint8), rows.numeric.view(np.uint8)], axis=1)
        whole = packed.view(f"V{columns.row_bytes}").ravel()
        _, first, self._places = np.unique(whole, return_index=True, return_inverse=True)
        self.rows = rows.rows(first)

    def explained(self, scores: F32) -> Explained:
        """Return the contributions, given the scores of `rows`."""
        odds = _log_odds(scores)[self._places]
        without, only = np.split(odds[1:], 2)
        contributions = np.zeros(self._differs.shape)
        contributions[self._differs] = np.round((self._odds - without + only - odds[0]) / 2, DIGITS)
        return Explained(self._typical, contributions)


def typical_row(columns: Columns, matrix: Matrix) -> Matrix:
    """Return one row: the median of each number, the most frequent category or set.

    The median is of the values that are not missing; of two middle ones, it is the smaller.
    """
    # Sorting puts NaN last.
    ordered = np.sort(matrix.numeric, axis=0)
    middle = (np.count_nonzero(~np.isnan(ordered), axis=0) - 1) // 2
    category = np.zeros((1, columns.num_category), np.uint64)
    for _, part in columns.category_parts():
        values, counts = np.unique(matrix.category[:, part], axis=0, return_counts=True)
        category[:, part] = values[counts.argmax()]
    return Matrix(ordered[middle, np.arange(len(middle))][None], category)


def _mixed(base: Matrix, other: Matrix, numeric: Bools, category: Bools) -> Matrix:
    """Return rows of `base` with the flagged columns of `other`."""
    return Matrix(
        np.where(numeric, other.numeric, base.numeric), np.where(category, other.category, base.category)
    )


def _log_odds(scores: F32) -> F64:
    p = np.clip(scores.astype(np.float64), SMALLEST, 1 - SMALLEST)
    return np.log(p) - np.log1p(-p)
