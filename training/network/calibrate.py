"""Platt calibration: fit the monotone map from the network's logits to probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from serve.contract.errors import TabrankError
from serve.model.graph import Calibration

F64 = NDArray[np.float64]
# Lower bound of a. Where logits and labels are unrelated or inversely related, the calibrated
# scores keep the order of the logits and have almost no spread.
MIN_SLOPE = 1e-3


def fit_platt(logit: NDArray[np.floating], label: NDArray[np.generic]) -> Calibration:
    """Fit a and b of sigmoid(a · logit + b) to logits [R] and labels 0 or 1 [R] by least logloss.

    The targets are those of Platt (1999), (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2): they keep a and b
    finite for separable and one-sided rows. Newton's method in a trust region; the loss is convex.

    Raises:
        TabrankError: if there are no rows, or a logit is not finite.
    """
    x, y = np.asarray(logit, np.float64), np.asarray(label) > 0.5
    if not len(x) or not np.isfinite(x).all():
        raise TabrankError(
            f"calibration: {len(x)} logits must be at least 1 and all finite; the training diverged: "
            "lower the learning rate"
        )
    num_positive = int(y.sum())
    target = np.where(y, (num_positive + 1) / (num_positive + 2), 1 / (len(x) - num_positive + 2))
    center, spread = x.mean(), x.std() or 1.0
    scaled, ones = (x - center) / spread, np.ones(len(x))
    slope, offset = _least(np.stack([scaled, ones]), target)
    if slope / spread < MIN_SLOPE:
        slope = MIN_SLOPE * spread
        (offset,) = _least(ones[None], target, slope * scaled)
    return Calibration(a=float(slope / spread), b=float(offset - slope * center / spread))


def _least(rows: F64, target: F64, fixed: F64 | float = 0.0) -> F64:
    """Return w [K] for which sigmoid(w · rows + fixed) has the least logloss; rows [K, R]."""

    def loss(w: F64) -> tuple[float, F64]:
        logit = w @ rows + fixed
        return np.sum(np.logaddexp(0.0, logit) - target * logit), rows @ (expit(logit) - target)

    def hessian(w: F64) -> F64:
        p = expit(w @ rows + fixed)
        # The ridge keeps the matrix regular where all logits are equal.
        return np.asarray((rows * (p * (1.0 - p))) @ rows.T + 1e-12 * len(target) * np.eye(len(rows)))

    mean = target.mean()
    start = np.array([*np.zeros(len(rows) - 1), np.log(mean / (1.0 - mean))])
    gtol = {"gtol": 1e-10 * len(target)}
    found: F64 = minimize(loss, start, jac=True, hess=hessian, method="trust-exact", options=gtol).x
    return found
