"""Platt calibration: fit a monotone map from the network's logits to probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from serve.contract.errors import TabrankError
from serve.features.slots import F64
from serve.model.graph import Calibration

# The lower bound of a. If logits and labels are unrelated or inversely related, the calibrated
# scores keep the order of the logits but have almost no spread.
MIN_SLOPE = 1e-3


def fit_platt(
    logit: NDArray[np.floating], label: NDArray[np.generic], examination: F64 | float = 1.0
) -> Calibration:
    """Fit a and b of θ · sigmoid(a · logit + b) to labels [R] from 0 to 1, with the least logloss.

    θ is the `examination` [R] of each row, so that the sigmoid is P(label | looked at). The targets
    are those of Platt (1999), (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2). Where θ is 1, they keep a and b
    finite even if the labels are separable or all equal.

    Raises:
        TabrankError: there are no rows, or a logit is not finite.
    """
    x, y = np.asarray(logit, np.float64), np.asarray(label, np.float64)
    if not len(x) or not np.isfinite(x).all():
        raise TabrankError("calibration: needs logits, and all finite; lower the learning rate")
    num_positive = float(y.sum())
    of_positive, of_negative = (num_positive + 1) / (num_positive + 2), 1 / (len(x) - num_positive + 2)
    target = y * of_positive + (1 - y) * of_negative
    center, spread = x.mean(), x.std() or 1.0
    rows = np.stack([(x - center) / spread, np.ones(len(x))])
    theta = examination * np.ones(len(x))
    with np.errstate(divide="ignore"):
        log_hidden = np.log1p(-theta)

    def loss(w: F64) -> tuple[float, F64]:
        logit = w @ rows
        # 1 − θσ = (1 − σ) (1 + (1 − θ) e^logit)
        hidden = logit + log_hidden
        lost = np.logaddexp(0.0, logit) - target * logit - (1.0 - target) * np.logaddexp(0.0, hidden)
        slope = expit(logit) - target - (1.0 - target) * expit(hidden)
        return np.mean(lost), rows @ slope / len(x)

    mean = target.mean()
    least = MIN_SLOPE * spread
    start = np.array([least, np.log(mean / (1.0 - mean))])
    bounds, bits = [(least, None), (None, None)], {"ftol": 1e-15, "gtol": 1e-10}
    slope, offset = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=bits).x
    return Calibration(a=float(slope / spread), b=float(offset - slope * center / spread))
