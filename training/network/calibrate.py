"""Platt calibration: fit the monotone map from the network's logits to probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.model.graph import Calibration

# Lower bound of a. Where logits and labels are unrelated or inversely related, the calibrated
# scores keep the order of the logits and have almost no spread.
MIN_SLOPE = 1e-3

# Bound Newton's iteration, which normally ends earlier on its gradient.
_MAX_STEPS = 100


def fit_platt(logit: NDArray[np.floating], label: NDArray[np.generic]) -> Calibration:
    """Fit a and b of sigmoid(a · logit + b) to logits [R] and labels 0 or 1 [R] by least logloss.

    The targets are those of Platt (1999), (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2): they keep a and b
    finite for separable and one-sided rows. Damped Newton (Lin, Lin & Weng 2007); the loss is
    convex.

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
    scaled = (x - center) / spread
    slope, offset = _newton(scaled, target, free=True)
    if slope / spread < MIN_SLOPE:
        slope = MIN_SLOPE * spread
        _, offset = _newton(scaled, target, free=False, slope=slope)
    return Calibration(a=float(slope / spread), b=float(offset - slope * center / spread))


def _newton(
    x: NDArray[np.float64], target: NDArray[np.float64], *, free: bool, slope: float = 0.0
) -> tuple[float, float]:
    """Return slope and offset of least loss; `slope` stays as given unless `free`."""
    mean = target.mean()
    at = np.array([slope, np.log(mean / (1.0 - mean))])
    rows = np.stack([x if free else np.zeros_like(x), np.ones_like(x)])
    ridge = 1e-12 * len(x)
    loss = _loss(x, target, at)
    for _ in range(_MAX_STEPS):
        p = 1.0 / (1.0 + np.exp(-(at[0] * x + at[1])))
        gradient = rows @ (p - target)
        hessian = (rows * (p * (1.0 - p))) @ rows.T + ridge * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        if not free:
            step[0] = 0.0
        size = 1.0
        while (new := _loss(x, target, at - size * step)) > loss - 1e-4 * size * float(gradient @ step):
            size /= 2.0
            if size < 1e-10:
                return float(at[0]), float(at[1])
        at, loss = at - size * step, new
        if np.abs(gradient).max() <= 1e-10 * len(x):
            break
    return float(at[0]), float(at[1])


def _loss(x: NDArray[np.float64], target: NDArray[np.float64], at: NDArray[np.float64]) -> float:
    logit = at[0] * x + at[1]
    return float(np.sum(np.logaddexp(0.0, logit) - target * logit))
