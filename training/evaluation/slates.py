"""Slates of an evaluation and their measures, computed for all slates at once.

Letters: N rows, S slates, S2 slates that can be ranked: two or more candidates, at least one
positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
# Ties in score are broken at random, in the same way in each evaluation.
TIE_SEED = 0


@dataclass(frozen=True)
class Slates:
    """Rows of an evaluation: `label` 0/1, number of the `slate` and of the `viewer`, each `[N]`.

    Slates of one viewer share the viewer's taste, so they are not independent: standard errors and
    intervals count viewers. Without `viewer`, each slate is independent.
    """

    label: NDArray[np.float32]
    slate: I64
    viewer: I64 | None = None

    def __len__(self) -> int:
        return len(self.size)

    @cached_property
    def code(self) -> I64:
        """Index of each row's slate, `[N]`, from 0 in the order of the slates' numbers."""
        return np.unique(self.slate, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def cluster(self) -> I64:
        """Index of each slate's viewer, `[S]`, from 0."""
        if self.viewer is None:
            return np.arange(len(self))
        first = np.unique(self.slate, return_index=True)[1]
        return np.unique(self.viewer[first], return_inverse=True)[1].astype(np.int64)

    @cached_property
    def size(self) -> F64:
        """Candidates of each slate, `[S]`."""
        return self.total(np.ones(len(self.slate)))

    @cached_property
    def positives(self) -> F64:
        """Positives of each slate, `[S]`."""
        return self.total(self.label)

    @property
    def rankable(self) -> NDArray[np.bool_]:
        """Mask of the slates that can be ranked, `[S]`, S2 of them."""
        return (self.size >= 2) & (self.positives > 0)

    @property
    def have_order(self) -> bool:
        """Return whether most slates have two or more candidates."""
        return 2 * int((self.size >= 2).sum()) >= len(self)

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Mask of the slates with both labels, `[S]`."""
        return (self.positives > 0) & (self.positives < self.size)

    def total(self, values: NDArray[np.generic]) -> F64:
        """Sum `values` `[N]` in each slate, `[S]`."""
        return np.bincount(self.code, weights=values).astype(np.float64)

    def order(self, score: NDArray[np.floating]) -> I64:
        """Return the row numbers `[N]`, slate by slate, highest `score` `[N]` first."""
        tie = np.random.default_rng(TIE_SEED).random(len(score))
        return np.lexsort((tie, -np.asarray(score, np.float64), self.code))

    def rank(self, order: I64) -> Ranking:
        """Return the ranking of these rows, all or some, which are in the order of `order`."""
        return Ranking(np.asarray(self.label[order], np.float64), self.code[order])

    def auc(self, score: NDArray[np.floating]) -> F64:
        """Return the AUC inside each slate with both labels, by slate number.

        The AUC is the probability that a positive of the slate is above a negative, with ties
        counted half. It comes from the rank sum (Mann and Whitney 1947). Its mean over slates is
        the "group AUC" of Zhou et al. (Deep Interest Network, 2018, section 6.2), unweighted.
        """
        level = np.unique(score, return_inverse=True)[1]
        earlier = np.cumsum(self.size) - self.size
        rank = midranks(self.code * len(level) + level) - earlier[self.code]
        summed = self.total(np.where(self.label > 0, rank, 0.0))[self.mixed]
        positive, size = self.positives[self.mixed], self.size[self.mixed]
        won = summed - positive * (positive + 1) / 2
        return np.asarray(won / (positive * (size - positive)), np.float64)


@dataclass(frozen=True)
class Ranking:
    """Rows grouped by slate, best first; every result is `[S2]`, by slate number."""

    # [N], the label.
    hit: F64
    # [N], the slate, in ascending order.
    code: I64

    @cached_property
    def _starts(self) -> I64:
        return np.flatnonzero(np.diff(self.code, prepend=-1))

    @cached_property
    def _group(self) -> I64:
        """Index of each row's slate among those present, `[N]`."""
        return np.cumsum(np.diff(self.code, prepend=-1) > 0) - 1

    @cached_property
    def _positives(self) -> F64:
        return np.bincount(self._group, self.hit).astype(np.float64)

    @cached_property
    def _rankable(self) -> NDArray[np.bool_]:
        return (np.bincount(self._group) >= 2) & (self._positives > 0)

    @cached_property
    def _position(self) -> I64:
        """Position of each row in its slate, `[N]`, from 1."""
        return np.arange(1, len(self.hit) + 1) - self._starts[self._group]

    @cached_property
    def _found(self) -> F64:
        """Positives of the slate down to each row, `[N]`."""
        return np.cumsum(self.hit) - (np.cumsum(self._positives) - self._positives)[self._group]

    @property
    def slate(self) -> I64:
        """Slates that can be ranked."""
        return self.code[self._starts[self._rankable]]

    def ndcg(self, k: int) -> F64:
        """Return NDCG@k, with gain = label and discount = 1 / log2(1 + position).

        Järvelin and Kekäläinen 2002.
        """
        discount = np.where(self._position <= k, 1.0 / np.log2(self._position + 1.0), 0.0)
        ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])
        best = ideal[np.minimum(self._positives[self._rankable], k).astype(np.int64)]
        return np.asarray(self._sum(self.hit * discount) / best, np.float64)

    def average_precision(self) -> F64:
        """Return the mean, over a slate's positives, of the precision down to each.

        Manning, Raghavan and Schütze 2008, section 8.4.
        """
        precision = self._sum(self.hit * self._found / self._position)
        return precision / self._positives[self._rankable]

    def reciprocal_rank(self) -> F64:
        """Return 1 / the position of the first positive (Voorhees 1999, TREC-8)."""
        return self._sum(np.where(self._found == 1, self.hit / self._position, 0.0))

    def _sum(self, values: F64) -> F64:
        total: F64 = np.bincount(self._group, values).astype(np.float64)
        return total[self._rankable]


def midranks(values: NDArray[np.generic]) -> F64:
    """Return the rank of each value `[N]`, from 1; equal ones share the mean of their ranks."""
    _, code, count = np.unique(values, return_inverse=True, return_counts=True)
    rank: F64 = np.cumsum(count) - (count - 1) / 2
    return rank[code]


def pairs_won(positive: NDArray[np.bool_], score: F64) -> F64:
    """Count, for each row `[N]`, the rows of the other label ordered correctly; ties count half."""
    won = midranks(score)
    won[positive] -= midranks(score[positive])
    won[~positive] = positive.sum() - (won[~positive] - midranks(score[~positive]))
    return won


def auc(label: NDArray[np.floating] | NDArray[np.bool_], score: NDArray[np.floating]) -> float | None:
    """Return the probability that a positive row is above a negative one, ties counted half.

    Hanley and McNeil 1982; None without both labels. Needs NumPy alone, which each worker imports
    anyway: importing scikit-learn's version takes a second.
    """
    positive: NDArray[np.bool_] = np.asarray(label > 0, np.bool_)
    num_pairs = float(positive.sum()) * float((~positive).sum())
    if not num_pairs:
        return None
    return float(pairs_won(positive, np.asarray(score, np.float64))[positive].sum() / num_pairs)


def sink_non_finite(score: NDArray[np.floating]) -> F64:
    """Return scores `[N]` with non-finite ones below the least, as the service ranks them."""
    score = np.asarray(score, np.float64)
    finite = np.isfinite(score)
    least = float(score[finite].min()) if finite.any() else 0.0
    return np.where(finite, score, least - 1.0)
