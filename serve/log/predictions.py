"""Predictions of a logged ranking, in the units of the outcomes.

C candidates shown, O outcomes that the version predicts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from serve.features.slots import F32, F64


def predictions(scores: F32, given: F32 | None, weights: Mapping[str, float], num_outcomes: int) -> F64:
    """Return the predictions `[C, O]`, NaN where nobody knows them.

    `scores` `[C]` are the utilities, `given` the predictions row by row, and `weights` those
    applied. One outcome has no predictions of its own in the log: they are the scores by its
    weight, which is 1 unless it is stated.
    """
    if given is not None:
        return given.reshape(-1, num_outcomes).astype(np.float64)
    (weight,) = weights.values() if len(weights) == 1 else (1.0,)
    if num_outcomes > 1 or not weight:
        return np.full((len(scores), num_outcomes), np.nan)
    return scores.astype(np.float64)[:, None] / weight
