"""Order: sort each request's candidates by score, or by what replaces a score.

Shapes: B requests; R rows, one per request and candidate, those of a request together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from serve.config.settings import NOOP, SHUFFLE
from serve.features.slots import F32, F64, I64

# Standing of a candidate. Candidates of a higher standing come later and have no score, whatever
# they are worth.
LIVE, ENDED, UNKNOWN = range(3)
Standings = NDArray[np.int8]
# A sort key that is above every float32, so that no score reaches it.
BEHIND = 1e39

# How arms that order by neither a model nor popularity get the worth of one request's candidates,
# given their popularity. They need no state, so they rank even while the store is down.
WORTHS: Mapping[str, Callable[[F32], F32]] = {
    NOOP: np.zeros_like,
    SHUFFLE: lambda popularity: np.random.default_rng().random(len(popularity), np.float32),
}


def ordered(request_of_row: I64, score: F32, worth: F64, standing: Standings) -> I64:
    """Sort the rows of each request, all at once: scored, unscored by worth, ended, unknown.

    Ties keep the given order. Return row numbers `[R]`, those of a request together.
    """
    # A score may be any number, such as a utility of -3.
    key = np.where(np.isnan(score), BEHIND * (1.0 + standing), -score.astype(np.float64))
    return np.lexsort((-worth, key, request_of_row))


def most_popular(request_of_row: I64, popularity: F32, standing: Standings, num_wanted: I64) -> I64:
    """Return the rows, ascending, of each request's most popular candidates; live ones come first.

    `num_wanted` `[B]` is how many each request wants.
    """
    order = np.lexsort((-popularity, standing, request_of_row))
    # The index within the request, since `order` keeps each request's rows together.
    place = np.arange(len(request_of_row)) - np.searchsorted(request_of_row, request_of_row)
    return np.sort(order[place < num_wanted[request_of_row]])


def missing_last(popularity: F32) -> F32:
    """Return the popularity with missing values last."""
    return np.where(np.isnan(popularity), np.float32(-np.inf), popularity)
