"""Reasons of a ranking: what each feature adds, compared with the slate's typical candidate.

The method is occlusion (Zeiler and Fergus 2014) from both ends. A feature adds the mean of two
steps: what the candidate loses in worth if the feature takes the typical value, and what the
typical candidate gains if the feature takes the candidate's value. These are the last and the first
step of the orders that a Shapley value averages (Shapley 1953), and they give it exactly if
features interact only in pairs. The steps may not add up to the difference between the two
candidates. What is left is divided among the features in proportion to their steps.

The worth is the log-odds if the utility is a probability, and otherwise the utility itself, which
may be negative.

Shapes: C scored candidates, of which E are explained; N features; P pairs of a candidate and a
feature in which it is not typical; F numeric and K category columns.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import numpy as np

from serve.features.matrix import Columns, Matrix
from serve.features.slots import F32, F64, I64, Bools
from serve.model.scorer_cache import untimed
from serve.ranking.query import Slate
from serve.ranking.utility import Weighing

# Limits the candidates that are explained, and the rows of their batch. A thread takes 2 to 6 ms
# for so many rows, and so does a Scorer, which scores nothing else meanwhile.
MAX_EXPLAINED = 100
MAX_ROWS = 4_000
# Limits the bytes of the rows, because the event loop builds them. For 3 MiB, with wide sets, it
# took 18 ms.
MAX_BYTES = 512 * 1024
# Keeps the logarithm finite if a float32 score is 0 or 1.
SMALLEST = 1e-7
# Digits after the point of a contribution in log-odds; further ones would be rounding. A utility
# may have any unit, so its largest contribution has this many digits.
DIGITS = 4


class Explained(NamedTuple):
    """Contributions `[E, N]` of an answer's first candidates, in log-odds or units of the utility.

    The contributions of a candidate sum to its difference from the typical candidate, whose row is
    `typical`. They are NaN for a candidate without a score.
    """

    typical: Matrix
    contributions: F64


async def explain(
    slate: Slate, columns: Columns, call: Callable[[str, bytes], Awaitable[bytes]], num_shown: int
) -> Explained | None:
    """Explain the shown candidates with one call of the scorer; None if no model scored them.

    Raises:
        Exception: the exception of the call.
    """
    scored = np.flatnonzero(np.isfinite(slate.score))
    if slate.model is None or slate.matrix is None or not len(scored):
        return None
    typical = typical_row(columns, slate.matrix.rows(scored))
    # The last candidates, and some pins, have no score.
    last = np.flatnonzero(np.isfinite(slate.score[slate.order]))[-1]
    shown = slate.order[: min(num_shown, MAX_EXPLAINED, last + 1)]
    given = slate.matrix.rows(shown)
    differs = _differences(columns, given, typical)
    candidate, feature = np.nonzero(differs)
    rows, places = _rows(columns, given.rows(candidate), feature, typical)
    answer = await call(slate.model, rows.to_bytes())
    weighing = slate.query.weighing
    worth = _worth(weighing, weighing.utility(untimed(answer, len(rows.numeric))[0]))[places]
    without, only = np.split(worth[1:], 2)
    whole = _worth(weighing, slate.score[shown[: len(differs)]])
    # [2, E, N]: without the candidate's value, and with it alone.
    steps = np.zeros((2, *differs.shape))
    steps[:, differs] = whole[candidate] - without, only - worth[0]
    contributions, share = steps.mean(axis=0), np.abs(steps).sum(axis=0)
    rest = whole - worth[0] - contributions.sum(axis=1)
    contributions += share * (rest / np.maximum(share.sum(axis=1), SMALLEST))[:, None]
    digits = DIGITS if weighing.is_share else _digits(contributions)
    return Explained(typical, np.round(contributions, digits))


def typical_row(columns: Columns, matrix: Matrix) -> Matrix:
    """Return one row: the median of each number, and the most frequent category or set.

    Missing values do not count for the median. If there are two middle values, it is the smaller.
    """
    # Sorting puts NaN last.
    ordered = np.sort(matrix.numeric, axis=0)
    middle = (np.count_nonzero(~np.isnan(ordered), axis=0) - 1) // 2
    category = np.zeros((1, columns.num_category), np.uint64)
    for _, part in columns.category_parts():
        values, counts = np.unique(matrix.category[:, part], axis=0, return_counts=True)
        category[:, part] = values[counts.argmax()]
    return Matrix(ordered[middle, np.arange(len(middle))][None], category)


def _differences(columns: Columns, given: Matrix, typical: Matrix) -> Bools:
    """Return in which features the given candidates are not typical, `[E, N]`.

    The last candidates are left out if their rows exceed `MAX_ROWS` or `MAX_BYTES`.
    """
    differs = (given.numeric != typical.numeric) & ~(np.isnan(given.numeric) & np.isnan(typical.numeric))
    starts = np.array([part.start for _, part in columns.category_parts()], np.intp)
    is_other = np.logical_or.reduceat(given.category != typical.category, starts, axis=1)
    differs = np.concatenate([differs, is_other], axis=1)
    # There is the typical row, and two rows for each pair.
    num_rows = 1 + 2 * differs.sum(axis=1).cumsum()
    fitting: Bools = differs[num_rows <= min(MAX_ROWS, MAX_BYTES // columns.row_bytes)]
    return fitting


def _rows(columns: Columns, given: Matrix, feature: I64, typical: Matrix) -> tuple[Matrix, I64]:
    """Return the distinct rows to score, and the place among them of each row that is needed.

    The needed rows `[1 + 2 P]` are the typical row, then for each pair the candidate with the
    typical value of the feature, and then for each pair the typical row with the candidate's value.
    """
    starts = [part.start for _, part in columns.category_parts()]
    owners = np.searchsorted(starts, np.arange(columns.num_category), "right") - 1
    # [P, F] and [P, K]: the columns of the pair's feature.
    numeric = feature[:, None] == np.arange(len(columns.numeric))
    category = feature[:, None] == owners + len(columns.numeric)
    wanted = [typical]
    for base, other in ((given, typical), (typical, given)):
        numbers = np.where(numeric, other.numeric, base.numeric)
        wanted.append(Matrix(numbers, np.where(category, other.category, base.category)))
    rows = Matrix.stacked(wanted)
    # Many candidates share a value.
    packed = np.concatenate([rows.category.view(np.uint8), rows.numeric.view(np.uint8)], axis=1)
    whole = packed.view(f"V{columns.row_bytes}").ravel()
    _, first, places = np.unique(whole, return_index=True, return_inverse=True)
    return rows.rows(first), places


def _worth(weighing: Weighing, score: F32) -> F64:
    """Return the worth `[R]` of scores: the log-odds of a probability, or the utility."""
    if not weighing.is_share:
        return score.astype(np.float64)
    p = np.clip(score.astype(np.float64), SMALLEST, 1 - SMALLEST)
    return np.log(p) - np.log1p(-p)


def _digits(contributions: F64) -> int:
    # Contributions of a pin without a score are NaN.
    largest = float(np.fmax.reduce(np.abs(contributions), axis=None, initial=0.0))
    return DIGITS - math.ceil(math.log10(largest)) if math.isfinite(largest) and largest else DIGITS
