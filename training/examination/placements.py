"""Placements: how often randomised orders put each candidate at each position, by repeated draws.

The log holds the weights of a draw, and with them its full distribution. The marginals have no
closed form and are counted over draws. Letters: N exposures, C candidates (padded), B bins of
positions, D draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]
Counts = NDArray[np.uint8]

# The mean of 200 draws makes 1 / examination too large by about 1 in 1,000. At most 255 (uint8).
NUM_DRAWS = 200
# Give each of the first positions a bin of its own.
SINGLE = 24
# After those, each bin ends 8 % further down than the one before.
WIDER = 1.08
# Draw at most this many keys at once, to bound the memory.
KEYS_AT_ONCE = 2_000_000
_TINY = np.float32(1e-30)


class Bins:
    """Bins of the positions of up to C candidates; lower positions, examined alike, share a bin."""

    def __init__(self, num_places: int) -> None:
        edges = list(range(min(num_places, SINGLE) + 1))
        while edges[-1] < num_places:
            edges.append(min(num_places, max(edges[-1] + 1, round(edges[-1] * WIDER))))
        # Bin of each position, [C].
        self.of: I64 = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
        # Centre of each bin, [B], in positions from 0.
        self.centre: F64 = (np.array(edges[:-1]) + np.array(edges[1:]) - 1) / 2

    def __len__(self) -> int:
        return len(self.centre)


def place_counts(weight: F64, bins: Bins, rng: Generator, num_draws: int = NUM_DRAWS) -> Counts:
    """Count in how many draws each candidate is in each bin, `[N, C, B]`.

    `weight` `[N, C]` are log weights, −inf for candidates that are not drawn, whose counts are 0.
    """
    counts = np.zeros((*weight.shape, len(bins)), np.uint8)
    for part, order in drawn_orders(weight, rng, num_draws):
        first = np.arange(order[0].size).reshape(order[0].shape) * len(bins)
        cell = np.take_along_axis(np.broadcast_to(first, order.shape), order, 2) + bins.of[: order.shape[2]]
        counts[part] = np.bincount(cell.ravel(), minlength=counts[part].size).reshape(counts[part].shape)
    counts[~np.isfinite(weight)] = 0
    return counts


def drawn_orders(weight: F64, rng: Generator, num_draws: int = NUM_DRAWS) -> Iterator[tuple[slice, I64]]:
    """Draw orders from log weights `[N, C]` as `serve.ranking.exploration` does.

    Candidates that are not drawn, of weight −inf, keep their columns, and the picks fill the
    others: of three with a pin at the second place, the second pick comes to the third. Yields some
    exposures at a time, with their orders `[D, n, C]`.
    """
    num, width = weight.shape
    at_once = max(1, KEYS_AT_ONCE // max(1, num_draws * width))
    for begin in range(0, num, at_once):
        part = slice(begin, begin + at_once)
        keys = rng.standard_exponential((num_draws, *weight[part].shape), np.float32)
        # −log of an exponential is Gumbel noise. float32 keys rarely tie, and sort twice as fast.
        keys = np.log(np.maximum(keys, _TINY, out=keys), out=keys) - weight[part].astype(np.float32)
        order, is_drawn = np.argsort(keys, axis=2), np.isfinite(weight[part])
        pick = np.maximum(np.cumsum(is_drawn, axis=1) - 1, 0)
        if (is_drawn & (pick < np.arange(width))).any():
            order = np.where(is_drawn, np.take_along_axis(order, pick[None], axis=2), np.arange(width))
        yield part, order
