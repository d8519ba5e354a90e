"""Where drawn orders put their candidates: how often each one stands at each place, by drawing again.

The weights of a draw are logged, so that its law is known whole; only its marginals have no closed form, and are
counted over draws. Letters: N exposures, C candidates (padded), B bins of places, D draws.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]
Counts = NDArray[np.uint8]

NUM_DRAWS = 200
"""An expected examination is a mean over as many: 1 / it is too large by about 1 in 1,000 then. At most 255."""
SINGLE = 24  # places from the first on that are a bin each
WIDER = 1.08  # each bin after those ends so many times as far down as the one before
KEYS_AT_ONCE = 2_000_000
_TINY = np.float32(1e-30)


class Bins:
    """The places of slates of up to C candidates; far down, where neighbours are looked at alike, several in one."""

    def __init__(self, num_places: int) -> None:
        edges = list(range(min(num_places, SINGLE) + 1))
        while edges[-1] < num_places:
            edges.append(min(num_places, max(edges[-1] + 1, round(edges[-1] * WIDER))))
        self.of: I64 = np.repeat(np.arange(len(edges) - 1), np.diff(edges))  # [C], each place's bin
        self.centre: F64 = (np.array(edges[:-1]) + np.array(edges[1:]) - 1) / 2  # [B], in places from 0

    def __len__(self) -> int:
        return len(self.centre)


def place_counts(weight: F64, bins: Bins, rng: Generator, num_draws: int = NUM_DRAWS) -> Counts:
    """Log weights `[N, C]`, −inf where nothing is drawn → in how many draws each was in each bin `[N, C, B]`.

    Those that are not drawn are in none.
    """
    num, width = weight.shape
    counts = np.zeros((num, width, len(bins)), np.uint8)
    at_once = max(1, KEYS_AT_ONCE // max(1, num_draws * width))
    for begin in range(0, num, at_once):
        part = weight[begin : begin + at_once]
        order = drawn_orders(part, rng, num_draws)
        row = np.arange(part.size).reshape(1, *part.shape)
        cell = np.take_along_axis(np.broadcast_to(row, order.shape), order, 2) * len(bins) + bins.of[:width]
        found = np.bincount(cell.ravel(), minlength=part.size * len(bins))
        counts[begin : begin + at_once] = found.reshape(*part.shape, len(bins))
    counts[~np.isfinite(weight)] = 0
    return counts


def drawn_orders(weight: F64, rng: Generator, num_draws: int) -> I64:
    """Orders `[D, n, C]` as `serve.ranking.exploration` draws them, of log weights `[n, C]`."""
    keys = rng.standard_exponential((num_draws, *weight.shape), np.float32)
    # −log of an exponential is Gumbel noise; float32 keys hardly ever tie, and sort twice as fast
    keys = np.log(np.maximum(keys, _TINY, out=keys), out=keys) - weight.astype(np.float32)
    return np.argsort(keys, axis=2)
