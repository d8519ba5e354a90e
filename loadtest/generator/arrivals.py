"""Arrival times of an open loop: a Poisson process that does not wait for answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from loadtest.workload.shapes import Block


def arrivals(
    rate_rps: Callable[[], float], blocks: Iterable[Block], rng: np.random.Generator
) -> Iterator[float]:
    """Yield the times at which to send a request, in ascending seconds from 0.

    The times within a block are drawn from its rate: a Poisson process, conditional on its count.
    The count is the expected one, so that a run offers exactly its nominal rate. Each block reads
    the rate again.
    """
    begins_s = 0.0
    for block in blocks:
        count = block.num_requests(rate_rps())
        yield from (begins_s + block.seconds * _places(block, np.sort(rng.random(count)))).tolist()
        begins_s += block.seconds


def _places(block: Block, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the places in the block, from 0 to 1, at which these shares of its requests were sent.

    They are the inverse of the block's integrated rate.
    """
    begins, ends = block.begins, block.ends
    if begins == ends:
        return share
    places: NDArray[np.float64] = (np.sqrt(begins**2 + (ends**2 - begins**2) * share) - begins) / (
        ends - begins
    )
    return places
