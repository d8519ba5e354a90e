"""When requests are sent: a Poisson process that waits for no answer (an open loop)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np


def arrivals(
    rate_rps: Callable[[], float], blocks_s: Iterable[float], rng: np.random.Generator
) -> Iterator[float]:
    """Yield the seconds, counted from 0 and ascending, at which to send a request.

    Within a block the times are uniform, which is a Poisson process given its count; the count is the
    expected one, so that a run offers exactly the rate that it names. Each block asks for the rate anew.
    """
    begins_s = 0.0
    for seconds in blocks_s:
        count = round(rate_rps() * seconds)
        yield from (begins_s + np.sort(rng.random(count)) * seconds).tolist()
        begins_s += seconds
