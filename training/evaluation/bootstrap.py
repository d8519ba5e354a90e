"""95 % intervals by a bootstrap over viewers: rows of one slate share a moment, slates of one viewer a taste, and
neither are independent.

Each draw gives each viewer, with all slates, a Poisson(1) weight (Chamandy, Muralidharan, Najmi and Naidu 2012,
"Estimating uncertainty for massive data streams"), so that every measure that is a ratio of sums over slates comes from
one product of the weights with those sums; the same weights serve all contenders, whose differences then can
be drawn too. Letters: S slates, B blocks of viewers, D draws, M sums.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from training.evaluation.slates import F64, I64, Slates

MAX_BLOCKS = 20_000
"""More viewers than that are drawn in blocks, put together at random: blocks are as independent as viewers are,
and D · B bytes bound the memory."""
_AT_ONCE = 50


class Bootstrap:
    """Draws over slates, those of one `cluster` `[S]` (numbered from 0) together; the same for the same seed."""

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
        """Of M columns `[S]`, what each draw's weighted sums are: `[M, D]`."""
        blocks = np.stack(
            [np.bincount(self._block, weights=column, minlength=self._num_blocks) for column in columns],
            axis=1,
        )
        parts = [
            self._weights[i : i + _AT_ONCE].astype(np.float64) @ blocks
            for i in range(0, self.num_draws, _AT_ONCE)
        ]
        return np.concatenate(parts).T

    def ratio(self, above: F64, below: F64) -> F64:
        """Each draw of Σ above / Σ below `[D]`; NaN where a draw holds nothing to divide by."""
        numerator, denominator = self.sums(above, below)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(numerator / denominator, np.float64)

    def auc(self, slates: Slates, won: F64) -> F64:
        """Each draw of the AUC over all rows, `[D]`, from the pairs that each row won (`pairs_won`), `[N]`.

        An AUC is a sum over pairs of rows, not over slates, and is drawn to first order in the weights: the AUC of
        the rows as they are, exactly, plus the weighted sum of each slate's influence on it. These are the cluster
        sums of Obuchowski (1997, "Nonparametric analysis of clustered ROC curve data"), so that the draws have the
        variance given there; what is left out is of the order of 1 / B.
        """
        negatives = slates.size - slates.positives
        num_positive, num_negative = slates.positives.sum(), negatives.sum()
        share = slates.total(won) / (num_positive * num_negative)
        value = share.sum() / 2
        influence = share - value * (slates.positives / num_positive + negatives / num_negative)
        return np.asarray(np.clip(value + self.sums(influence)[0], 0.0, 1.0), np.float64)


def interval(draws: F64) -> list[float] | None:
    """The middle 95 % of the draws that are defined; None where hardly any is."""
    draws = draws[np.isfinite(draws)]
    if len(draws) < 2:
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return [float(low), float(high)]
