"""Order: sort each request's candidates by score, or by what replaces a score.

Shapes: B requests; R rows, one per request and candidate, those of a request together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from serve.config.settings import NOOP, SHUFFLE
from serve.features.slots import F32, F64, I64, Bools

# Arms that order by neither model nor popularity: the worth of one request's candidates, given
# their popularity. They need no state, so they rank even while the store is down.
WORTHS: Mapping[str, Callable[[F32], F32]] = {
    NOOP: np.zeros_like,
    SHUFFLE: lambda popularity: np.random.default_rng().random(len(popularity), np.float32),
}


def ordered(request_of_row: I64, score: F32, worth: F64, ended: Bools) -> I64:
    """Sort the rows of each request, all at once: scored, unscored by their worth, then ended.

    Ties keep the given order. Returns row numbers `[R]`, those of a request together.
    """
    # Sort keys above every score: the negated scores are -1 to 0.
    unscored = np.where(ended, np.float32(2.0), np.float32(1.0))
    return np.lexsort((-worth, np.where(np.isnan(score), unscored, -score), request_of_row))


def most_popular(request_of_row: I64, popularity: F32, ended: Bools, num_wanted: I64) -> I64:
    """Return the rows, ascending, of each request's most popular candidates that have not ended.

    `num_wanted` `[B]` is how many each request wants.
    """
    order = np.lexsort((-popularity, ended, request_of_row))
    # Index within the request; `order` keeps each request's rows together.
    place = np.arange(len(request_of_row)) - np.searchsorted(request_of_row, request_of_row)
    return np.sort(order[place < num_wanted[request_of_row]])


def missing_last(popularity: F32) -> F32:
    """Return the popularity with missing values last."""
    return np.where(np.isnan(popularity), np.float32(-np.inf), popularity)
