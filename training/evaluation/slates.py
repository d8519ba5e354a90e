"""The slates of an evaluation and their measures, computed for all slates at once.

In shapes, N is the number of rows, S of slates, and S2 of slates that can be ranked: they have two
or more candidates, and at least one that gains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
# Ties in score are broken at random, but in the same way in every evaluation.
TIE_SEED = 0


@dataclass(frozen=True)
class Slates:
    """Rows of an evaluation: each has a `label` from 0 to 1, a `slate` and a `viewer`, all `[N]`.

    The slates of one viewer are not independent, because they share the viewer's taste. So standard
    errors and intervals count viewers. `worth` `[N]` is what an order gains by a row; by default it
    is the label.
    """

    label: NDArray[np.float32]
    slate: I64
    viewer: I64
    worth: F64 | None = None

    def __len__(self) -> int:
        return len(self.size)

    @cached_property
    def code(self) -> I64:
        """Index of each row's slate, `[N]`, from 0, in the order of the slates' numbers."""
        return np.unique(self.slate, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def cluster(self) -> I64:
        """Index of each slate's viewer, `[S]`, from 0."""
        first = np.unique(self.slate, return_index=True)[1]
        return np.unique(self.viewer[first], return_inverse=True)[1].astype(np.int64)

    @cached_property
    def size(self) -> F64:
        """Number of candidates of each slate, `[S]`."""
        return self.total(np.ones(len(self.slate)))

    @cached_property
    def positives(self) -> F64:
        """Number of positives of each slate, `[S]`: its rows with a label above 0."""
        return self.total(self.label > 0)

    @cached_property
    def gain(self) -> F64:
        """What an order gains by each row, `[N]`; it is negative for a row that costs."""
        return np.asarray(self.label if self.worth is None else self.worth, np.float64)

    @property
    def rankable(self) -> NDArray[np.bool_]:
        """Mask `[S]` of the S2 slates that can be ranked."""
        return (self.size >= 2) & (self.total(np.maximum(self.gain, 0.0)) > 0)

    @property
    def have_order(self) -> bool:
        """Return whether most slates have two or more candidates."""
        return 2 * int((self.size >= 2).sum()) >= len(self)

    def take(self, rows: NDArray[np.bool_]) -> Slates:
        """Return only the rows of this mask. They form slates among themselves."""
        worth = None if self.worth is None else self.worth[rows]
        return Slates(self.label[rows], self.slate[rows], self.viewer[rows], worth)

    def total(self, values: NDArray[np.generic]) -> F64:
        """Sum the `values` `[N]` of each slate, `[S]`."""
        return np.bincount(self.code, weights=values).astype(np.float64)

    def order(self, score: NDArray[np.floating]) -> I64:
        """Return the row numbers `[N]` slate by slate, with the highest `score` `[N]` first."""
        tie = np.random.default_rng(TIE_SEED).random(len(score))
        return np.lexsort((tie, -np.asarray(score, np.float64), self.code))

    def ndcg(self, order: I64, k: int = 10) -> F64:
        """Return NDCG@k of the slates that can be ranked, `[S2]`, for an `order` `[N]` of `order`.

        A gain at position i, counted from 1, is discounted by 1 / log2(1 + i) (Järvelin and
        Kekäläinen 2002). The ideal order, whose NDCG is 1, consists of the positive gains alone. A
        row that costs lowers the NDCG of an order that shows it.
        """
        rankable, positive = self.rankable, np.maximum(self.gain, 0.0)
        ideal = self._dcg(positive, np.lexsort((-positive, self.code)), k)
        return np.asarray(self._dcg(self.gain, order, k)[rankable] / ideal[rankable], np.float64)

    def place(self, order: I64) -> F64:
        """Return for each row of an order `[N]` its place in its slate, from 0."""
        return np.arange(len(order)) - (np.cumsum(self.size) - self.size)[self.code[order]]

    def _dcg(self, gain: F64, order: I64, k: int) -> F64:
        position = self.place(order)
        discount = np.where(position < k, 1.0 / np.log2(position + 2.0), 0.0)
        return np.bincount(self.code[order], weights=gain[order] * discount).astype(np.float64)


def midranks(values: NDArray[np.generic]) -> F64:
    """Return the rank of each value `[N]`, from 1. Equal values share the mean of their ranks."""
    return np.asarray(pd.Series(values).rank(), np.float64)


def pairs_won(positive: NDArray[np.bool_], score: F64) -> F64:
    """Count for each row `[N]` the rows of the other label that are ordered correctly with it.

    Ties count half.
    """
    same = np.empty(len(score))
    for label in (positive, ~positive):
        same[label] = midranks(score[label])
    # For each row, how many rows of the other label are below it.
    below = midranks(score) - same
    return np.where(positive, below, positive.sum() - below)


def auc(label: NDArray[np.floating] | NDArray[np.bool_], score: NDArray[np.floating]) -> float | None:
    """Return the probability that a positive row scores above a negative one; ties count half.

    This is the area under the ROC curve (Hanley and McNeil 1982). It is None without both labels.
    It only uses what each worker imports anyway, because importing scikit-learn takes a second.
    """
    positive: NDArray[np.bool_] = np.asarray(label > 0, np.bool_)
    num_pairs = float(positive.sum()) * float((~positive).sum())
    if not num_pairs:
        return None
    return float(pairs_won(positive, np.asarray(score, np.float64))[positive].sum() / num_pairs)


def sink_non_finite(score: NDArray[np.floating]) -> F64:
    """Return the scores `[N]` with non-finite ones below all others, as the service ranks them."""
    score = np.asarray(score, np.float64)
    finite = np.isfinite(score)
    least = float(score[finite].min()) if finite.any() else 0.0
    return np.where(finite, score, least - 1.0)
