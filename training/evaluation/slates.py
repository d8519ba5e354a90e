"""The slates of an evaluation, and what is measured slate by slate, without a loop over them.

Letters: N rows, S slates, S2 those that can be ranked: two or more candidates, at least one of them positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
TIE_SEED = 0  # ties in score are broken at random, the same way in each evaluation


@dataclass(frozen=True)
class Slates:
    """The rows of an evaluation: `label` `[N]` 0/1, the number of each row's `slate` `[N]` and of its `viewer` `[N]`.

    The slates of a viewer share the viewer's taste, and so are no independent witnesses: what is said of certainty
    counts viewers. Without `viewer` each slate is on its own.
    """

    label: NDArray[np.float32]
    slate: I64
    viewer: I64 | None = None

    def __len__(self) -> int:
        return len(self.size)

    @cached_property
    def code(self) -> I64:
        """Which of the S slates each row is of, `[N]`, from 0 in the order of the slates' numbers."""
        return np.unique(self.slate, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def cluster(self) -> I64:
        """Which viewer each slate is of, `[S]`, from 0."""
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
        """The slates whose order can be right or wrong, `[S]`, S2 of them."""
        return (self.size >= 2) & (self.positives > 0)

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """The slates with both labels, `[S]`."""
        return (self.positives > 0) & (self.positives < self.size)

    def total(self, values: NDArray[np.generic]) -> F64:
        """The sum of `values` `[N]` in each slate, `[S]`."""
        return np.bincount(self.code, weights=values).astype(np.float64)

    def order(self, score: NDArray[np.floating]) -> I64:
        """The numbers of the rows `[N]`, slate by slate, as `score` `[N]` would show them: the highest first."""
        tie = np.random.default_rng(TIE_SEED).random(len(score))
        return np.lexsort((tie, -np.asarray(score, np.float64), self.code))

    def rank(self, order: I64) -> Ranking:
        """The rows of these numbers, which are in the order of `order`: all of them, or some."""
        return Ranking(np.asarray(self.label[order], np.float64), self.code[order])

    def ndcg(self, score: NDArray[np.floating], k: int = 10) -> F64:
        """NDCG@k of each slate that can be ranked, `[S2]`, by slate number; see `Ranking.ndcg`."""
        return self.rank(self.order(score)).ndcg(k)

    def auc(self, score: NDArray[np.floating]) -> F64:
        """AUC inside each slate with both labels: the chance that a positive of the slate is above a negative
        of it, ties for a half; by slate number.

        From the rank sum (Mann and Whitney 1947); averaged over slates it is the "group AUC" of Zhou et al.
        (Deep Interest Network, 2018, section 6.2), unweighted.
        """
        order = np.lexsort((score, self.code))
        code, hit = self.code[order], self.label[order] > 0
        first = np.concatenate([[True], (np.diff(code) != 0) | (np.diff(score[order]) != 0)])
        ends = np.append(np.flatnonzero(first)[1:], len(order))
        group = np.cumsum(first) - 1
        starts = np.cumsum(self.size) - self.size
        rank = (np.flatnonzero(first)[group] + ends[group] + 1) / 2 - starts[code]  # mean of the tied, from 1
        summed = np.bincount(code[hit], weights=rank[hit], minlength=len(self))[self.mixed]
        positive, size = self.positives[self.mixed], self.size[self.mixed]
        won = summed - positive * (positive + 1) / 2
        return np.asarray(won / (positive * (size - positive)), np.float64)


@dataclass(frozen=True)
class Ranking:
    """Rows grouped by slate, the best first; every answer is `[S2]`, by slate number."""

    hit: F64  # [N], the label
    code: I64  # [N], which slate; never falls

    @cached_property
    def _starts(self) -> I64:
        return np.flatnonzero(np.diff(self.code, prepend=-1))

    @cached_property
    def _size(self) -> I64:
        return np.diff(np.append(self._starts, len(self.code)))

    @cached_property
    def _positives(self) -> F64:
        return np.add.reduceat(self.hit, self._starts) if len(self.hit) else self.hit

    @cached_property
    def _rankable(self) -> NDArray[np.bool_]:
        return np.asarray((self._size >= 2) & (self._positives > 0), bool)

    @cached_property
    def _position(self) -> I64:
        """Of each row in its slate, `[N]`, from 1."""
        return np.arange(1, len(self.hit) + 1) - np.repeat(self._starts, self._size)

    @property
    def slate(self) -> I64:
        """The slates that can be ranked."""
        return self.code[self._starts[self._rankable]]

    def ndcg(self, k: int) -> F64:
        """NDCG@k: gain is the label, discount 1 / log2(1 + position) (Järvelin and Kekäläinen 2002)."""
        discount = np.where(self._position <= k, 1.0 / np.log2(self._position + 1.0), 0.0)
        ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])
        best = ideal[np.minimum(self._positives[self._rankable], k).astype(np.int64)]
        return np.asarray(self._sum(self.hit * discount) / best, np.float64)

    def average_precision(self) -> F64:
        """Mean over a slate's positives of the precision down to each (Manning, Raghavan and Schütze 2008,
        section 8.4)."""
        before = np.cumsum(self.hit) - self.hit
        above = before - np.repeat(before[self._starts], self._size) + self.hit
        precision = self._sum(self.hit * above / self._position)
        return np.asarray(precision / self._positives[self._rankable], np.float64)

    def reciprocal_rank(self) -> F64:
        """1 / the position of the first positive (Voorhees 1999, TREC-8)."""
        return self._reduced(np.maximum, np.where(self.hit > 0, 1.0 / self._position, 0.0))

    def _sum(self, values: F64) -> F64:
        return self._reduced(np.add, values)

    def _reduced(self, by: np.ufunc, values: F64) -> F64:
        if not len(values):
            return values
        return np.asarray(by.reduceat(values, self._starts)[self._rankable], np.float64)


def pairs_won(positive: NDArray[np.bool_], score: F64) -> F64:
    """For each row `[N]`: how many rows of the other label it is rightly ordered with, ties for a half."""
    order = np.argsort(score, kind="stable")
    hit = positive[order]
    first = np.flatnonzero(np.concatenate([[True], np.diff(score[order]) != 0]))
    size = np.diff(np.append(first, len(order)))
    num_positive = np.add.reduceat(hit, first, dtype=np.float64)
    num_negative = size - num_positive
    negatives_below = np.cumsum(num_negative) - num_negative / 2
    positives_above = num_positive.sum() - np.cumsum(num_positive) + num_positive / 2
    won = np.empty(len(order))
    won[order] = np.where(hit, np.repeat(negatives_below, size), np.repeat(positives_above, size))
    return won


def auc(label: NDArray[np.floating] | NDArray[np.bool_], score: NDArray[np.floating]) -> float | None:
    """The chance that a positive row is above a negative one, ties for a half (Hanley and McNeil 1982); None without
    both. It needs NumPy alone, which each worker has anyway: scikit-learn's takes a second to import."""
    positive: NDArray[np.bool_] = np.asarray(label > 0, np.bool_)
    num_pairs = float(positive.sum()) * float((~positive).sum())
    if not num_pairs:
        return None
    return float(pairs_won(positive, np.asarray(score, np.float64))[positive].sum() / num_pairs)


def sunk(score: NDArray[np.floating]) -> F64:
    """Scores `[N]` with what is not finite put below the least: so it is served, and so it is measured."""
    score = np.asarray(score, np.float64)
    finite = np.isfinite(score)
    least = float(score[finite].min()) if finite.any() else 0.0
    return np.where(finite, score, least - 1.0)
