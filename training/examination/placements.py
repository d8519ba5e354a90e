"""Count how often randomised orders put each candidate at each position, by repeating the draws.

The log holds the weights of a draw, and so its full distribution. How often a candidate is at a
position has no closed form, so it is counted over many draws. In shapes, N is the number of
exposures, C of candidates (padded), B of bins of positions and D of draws.
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

# With the mean of 200 draws, 1 / examination is too large by about 1 in 1,000. Counts are uint8, so
# at most 255 draws are possible.
NUM_DRAWS = 200
# Each of the first positions has a bin of its own.
SINGLE = 24
# After those, each bin ends 8 % further down than the previous one.
WIDER = 1.08
# At most this many keys are drawn at once, which bounds the memory.
KEYS_AT_ONCE = 2_000_000
_TINY = np.float32(1e-30)


class Bins:
    """Bins of the positions of up to C candidates. Positions far down share one."""

    def __init__(self, num_places: int) -> None:
        edges = list(range(min(num_places, SINGLE) + 1))
        while edges[-1] < num_places:
            edges.append(min(num_places, max(edges[-1] + 1, round(edges[-1] * WIDER))))
        # The bin of each position, [C].
        self.of: I64 = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
        # The centre of each bin, [B], in positions from 0.
        self.centre: F64 = (np.array(edges[:-1]) + np.array(edges[1:]) - 1) / 2

    def __len__(self) -> int:
        return len(self.centre)


def place_counts(weight: F64, bins: Bins, rng: Generator, num_draws: int = NUM_DRAWS) -> Counts:
    """Count in how many draws each candidate is in each bin, `[N, C, B]`.

    `weight` `[N, C]` holds log weights. It is −inf for candidates that are not drawn; their counts
    are 0.
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

    Candidates that are not drawn have the weight −inf and keep their columns. The picks fill the
    other columns. For example, if the second of three candidates is pinned, the first pick takes
    the first place and the second pick the third.

    Yields some exposures at a time, as a slice with their orders `[D, n, C]`.
    """
    num, width = weight.shape
    at_once = max(1, KEYS_AT_ONCE // max(1, num_draws * width))
    for begin in range(0, num, at_once):
        part = slice(begin, begin + at_once)
        keys = rng.standard_exponential((num_draws, *weight[part].shape), np.float32)
        # −log of an exponential variable is Gumbel noise. Keys in float32 sort twice as fast, and
        # they rarely tie.
        keys = np.log(np.maximum(keys, _TINY, out=keys), out=keys) - weight[part].astype(np.float32)
        order, is_drawn = np.argsort(keys, axis=2), np.isfinite(weight[part])
        pick = np.maximum(np.cumsum(is_drawn, axis=1) - 1, 0)
        if (is_drawn & (pick < np.arange(width))).any():
            order = np.where(is_drawn, np.take_along_axis(order, pick[None], axis=2), np.arange(width))
        yield part, order
