"""Platt calibration: fit the monotone map from the network's logits to probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from serve.contract.errors import TabrankError
from serve.features.slots import F64, I64
from serve.model.graph import Calibration

# Lower bound of a. Where logits and labels are unrelated or inversely related, the calibrated
# scores keep the order of the logits and have almost no spread.
MIN_SLOPE = 1e-3
# Bound of a probability, whose logloss would be infinite.
LEAST = 1e-7


def fit_platt(
    logit: NDArray[np.floating], label: NDArray[np.generic], examination: F64 | float = 1.0
) -> Calibration:
    """Fit a and b of θ · sigmoid(a · logit + b) to labels 0 or 1 [R] by least logloss.

    θ is the `examination` [R] of each row, so the sigmoid is P(label | looked at). The targets are
    those of Platt (1999), (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2): where θ is 1, they keep a and
    b finite for separable and one-sided rows.

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


def fit_if_better(logit: F64, label: NDArray[np.generic], examination: F64, group: I64) -> Calibration:
    """Return the map of `fit_platt`, or the identity if other rows do not show that it gains.

    The rows are halved by `group` [R], their viewers; each half is measured with the map of the
    other. The map is kept if it lowers the logloss by more than one standard error, with groups as
    clusters. A half needs both labels, or the answer is the identity.
    """
    identity, gain = Calibration(1.0, 0.0), np.zeros(len(logit))
    number = np.unique(group, return_inverse=True)[1]
    for rows in (number % 2 > 0, number % 2 == 0):
        if not 0 < label[rows].sum() < rows.sum():
            return identity
        found = fit_platt(logit[rows], label[rows], examination[rows])
        for calibration, sign in ((identity, 1.0), (found, -1.0)):
            gain[~rows] += sign * _lost(calibration, logit[~rows], label[~rows], examination[~rows])
    gained = np.bincount(number, gain)
    return fit_platt(logit, label, examination) if gained.sum() > np.linalg.norm(gained) else identity


def _lost(found: Calibration, logit: F64, label: NDArray[np.generic], examination: F64) -> F64:
    """Return the logloss of rows as shown, [R]."""
    chance = examination * np.clip(expit(found.a * logit + found.b), LEAST, 1.0 - LEAST)
    return np.asarray(-np.log(np.where(np.asarray(label) > 0.5, chance, 1.0 - chance)), np.float64)
