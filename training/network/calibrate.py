"""Platt calibration: fit the monotone map from the network's logits to probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from serve.contract.errors import TabrankError
from serve.features.slots import F64
from serve.model.graph import Calibration

# Lower bound of a. Where logits and labels are unrelated or inversely related, the calibrated
# scores keep the order of the logits and have almost no spread.
MIN_SLOPE = 1e-3


def fit_platt(
    logit: NDArray[np.floating], label: NDArray[np.generic], examination: F64 | float = 1.0
) -> Calibration:
    """Fit a and b of θ · sigmoid(a · logit + b) to labels 0 or 1 [R] by least logloss.

    θ is the `examination` [R] of each row, so the sigmoid is P(label | looked at). The targets are
    those of Platt (1999), (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2): where θ is 1, they keep a and
    b finite for separable and one-sided rows. Newton's method in a trust region.

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
    theta = examination * ones
    slope, offset = _least(np.stack([scaled, ones]), target, theta)
    if slope / spread < MIN_SLOPE:
        slope = MIN_SLOPE * spread
        (offset,) = _least(ones[None], target, theta, slope * scaled)
    return Calibration(a=float(slope / spread), b=float(offset - slope * center / spread))


def _least(rows: F64, target: F64, theta: F64, fixed: F64 | float = 0.0) -> F64:
    """Return w [K] for which θ · sigmoid(w · rows + fixed) has the least logloss; rows [K, R]."""
    with np.errstate(divide="ignore"):
        log_hidden = np.log1p(-theta)

    def loss(w: F64) -> tuple[float, F64]:
        logit = w @ rows + fixed
        # 1 − θσ = (1 − σ) (1 + (1 − θ) e^logit)
        hidden = logit + log_hidden
        lost = np.logaddexp(0.0, logit) - target * logit - (1.0 - target) * np.logaddexp(0.0, hidden)
        return np.sum(lost), rows @ (expit(logit) - target - (1.0 - target) * expit(hidden))

    def hessian(w: F64) -> F64:
        logit = w @ rows + fixed
        p, rest = expit(logit), expit(log_hidden + logit)
        curvature = p * (1.0 - p) - (1.0 - target) * rest * (1.0 - rest)
        # The ridge keeps the matrix regular where all logits are equal.
        return np.asarray((rows * curvature) @ rows.T + 1e-12 * len(target) * np.eye(len(rows)))

    mean = target.mean()
    start = np.array([*np.zeros(len(rows) - 1), np.log(mean / (1.0 - mean))])
    gtol = {"gtol": 1e-10 * len(target)}
    found: F64 = minimize(loss, start, jac=True, hess=hessian, method="trust-exact", options=gtol).x
    return found
