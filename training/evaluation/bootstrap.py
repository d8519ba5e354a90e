"""95 % intervals by a bootstrap over viewers.

Rows of one slate share a moment and slates of one viewer share a taste, so neither are independent.
Each draw gives each viewer, with all slates, a Poisson(1) weight (Chamandy, Muralidharan, Najmi and
Naidu 2012, "Estimating uncertainty for massive data streams"). Every measure that is a ratio of
sums over slates then follows from one product of the weights with those sums. All contenders have
the same weights, so their differences can be drawn too.

Letters: S slates, B blocks of viewers, D draws, M sums.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from training.evaluation.slates import F64, I64, Slates

# More viewers than this are drawn in random blocks, which are as independent as viewers are; the
# limit bounds the memory, D · B bytes.
MAX_BLOCKS = 20_000
# Draws in one product of weights and sums, which bounds its memory.
_AT_ONCE = 50


class Bootstrap:
    """Draws over slates; those of one `cluster` `[S]` (from 0) are drawn together, by the seed."""

    def __init__(self, cluster: I64, num_draws: int = 500, seed: int = 0) -> None:
        self.num_draws = num_draws
        self._rng = np.random.default_rng(seed)
        num_clusters = int(cluster.max(initial=-1)) + 1
        self._num_blocks = min(num_clusters, MAX_BLOCKS)
        block = np.arange(num_clusters) % max(self._num_blocks, 1)
        if num_clusters > MAX_BLOCKS:
            self._rng.shuffle(block)
        self._block = block[cluster]

    @cached_property
    def _weights(self) -> NDArray[np.uint8]:
        return self._rng.poisson(1.0, (self.num_draws, self._num_blocks)).astype(np.uint8)

    def sums(self, *columns: F64) -> F64:
        """Return the weighted sums of M columns `[S]` in each draw, `[M, D]`."""
        blocks = [np.bincount(self._block, weights=column, minlength=self._num_blocks) for column in columns]
        of_block, begins = np.stack(blocks, axis=1), range(0, self.num_draws, _AT_ONCE)
        parts = [self._weights[i : i + _AT_ONCE].astype(np.float64) @ of_block for i in begins]
        return np.concatenate(parts).T

    def ratio(self, above: F64, below: F64) -> F64:
        """Return Σ above / Σ below in each draw `[D]`; NaN where the divisor is 0."""
        numerator, denominator = self.sums(above, below)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(numerator / denominator, np.float64)

    def auc(self, slates: Slates, won: F64) -> F64:
        """Return the AUC over all rows in each draw, `[D]`, from the pairs won by each row, `[N]`.

        `won` comes from `pairs_won`. An AUC is a sum over pairs of rows, not over slates, so it is
        drawn to first order in the weights: the exact AUC of the rows plus the weighted sum of each
        slate's influence on it. These are the cluster sums of Obuchowski (1997, "Nonparametric
        analysis of clustered ROC curve data"), so the draws have the variance given there; the
        error is of the order of 1 / B.
        """
        negatives = slates.size - slates.positives
        num_positive, num_negative = slates.positives.sum(), negatives.sum()
        share = slates.total(won) / (num_positive * num_negative)
        value = share.sum() / 2
        influence = share - value * (slates.positives / num_positive + negatives / num_negative)
        return np.asarray(np.clip(value + self.sums(influence)[0], 0.0, 1.0), np.float64)


def interval(draws: F64) -> list[float] | None:
    """Return the middle 95 % of the finite draws; None for fewer than two."""
    draws = draws[np.isfinite(draws)]
    if len(draws) < 2:
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return [float(low), float(high)]
