"""Predictions of a logged ranking, in the units of the outcomes.

Letters: C candidates that were shown, O outcomes that the version predicts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from serve.features.slots import F32, F64


def predictions(scores: bytes | F32, given: bytes | F32 | None, weights: Mapping[str, float]) -> F64:
    """Return the predictions `[C, O]`, NaN where they are not known.

    `scores` are the utilities `[C]`, `given` the logged predictions row by row, and `weights` the
    weights that were applied to the outcomes. For a single outcome, the log holds no predictions:
    they are the scores divided by its weight, which is 1 unless it is stated.
    """
    num_outcomes = len(weights) or 1
    if given is not None:
        return np.frombuffer(given, np.float32).reshape(-1, num_outcomes).astype(np.float64)
    one = np.frombuffer(scores, np.float32).astype(np.float64)[:, None]
    weight = next(iter(weights.values()), 1.0) if num_outcomes == 1 else np.nan
    return np.repeat(one / (weight or np.nan), num_outcomes, axis=1)
