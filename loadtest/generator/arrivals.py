"""When requests are sent: a Poisson process that waits for no answer (an open loop)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from loadtest.workload.shapes import Block


def arrivals(
    rate_rps: Callable[[], float], blocks: Iterable[Block], rng: np.random.Generator
) -> Iterator[float]:
    """Yield the seconds, counted from 0 and ascending, at which to send a request.

    Within a block the times are drawn by its rate, which is a Poisson process given its count; the count is the
    expected one, so that a run offers exactly the rate that it names. Each block asks for the rate anew.
    """
    begins_s = 0.0
    for block in blocks:
        count = block.num_requests(rate_rps())
        yield from (begins_s + block.seconds * _places(block, np.sort(rng.random(count)))).tolist()
        begins_s += block.seconds


def _places(block: Block, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where in the block, from 0 to 1, these shares of its requests have been sent: its integrated rate, inverted."""
    begins, ends = block.begins, block.ends
    if begins == ends:
        return share
    places: NDArray[np.float64] = (np.sqrt(begins**2 + (ends**2 - begins**2) * share) - begins) / (
        ends - begins
    )
    return places
