"""Test for interference: do the candidates above a candidate change its reward?

If a reward is examination × attraction, they do not. Given the slate and a candidate's position,
the draw decides at random which candidates are above it. Let z be the sum of their logged scores,
and z̄ its mean over draws with the same position of the candidate. Then Σ y·(z − z̄) has mean 0 if
only position and candidate matter.

That sum is the score at γ = 0 in the model θ(k)·a·exp(γ(z − z̄)). Divided by its information, it is
a one-step estimate of γ (Rao 1948, "Large sample tests of statistical hypotheses concerning several
parameters"). If viewers leave after they have found something, γ is negative. The test needs
thousands of events.

Orders that were drawn from utilities have no logged probability. For those, a score is the logistic
function of its log weight, and only the sign of γ has a meaning. In shapes, N is the number of
exposures, C of candidates and D of draws.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from training.evaluation.counterfactual import Drawn, Estimate
from training.examination.placements import F64, Bins, drawn_orders


def effect_of_above(drawn: Drawn, bins: Bins, rng: Generator) -> Estimate | None:
    """Estimate γ, the log factor of an event's probability per expected event above.

    Returns None if the log holds no information on γ.
    """
    worth = np.where(np.isfinite(drawn.weight), 1.0 / (1.0 + np.exp(-drawn.weight)), 0.0)
    apart = np.cumsum(worth, axis=1) - worth - _expected(drawn.weight, worth, bins, rng)
    earned = drawn.reward * np.where(np.isfinite(drawn.weight), apart, np.nan)
    has_value = np.isfinite(earned)
    score = np.where(has_value, earned, 0.0).sum(axis=1)
    information = np.where(has_value, drawn.reward * apart**2, 0.0).sum(axis=1)
    if not information.any():
        return None
    gamma = float(score.sum() / information.sum())
    return Estimate(gamma, (score - gamma * information) / information.mean())


def _expected(weight: F64, worth: F64, bins: Bins, rng: Generator) -> F64:
    """Return `[N, C]` the mean sum of `worth` above each candidate at its position, or NaN."""
    total, times = np.zeros(weight.shape), np.zeros(weight.shape)
    here = bins.of[: weight.shape[1]]
    for part, order in drawn_orders(weight, rng):
        # Use only the draws that put the candidate into the bin where it was shown.
        stands = here[order] == here
        drawn = np.take_along_axis(np.broadcast_to(worth[part], order.shape), order, 2)
        above = np.cumsum(drawn, axis=2) - drawn
        row = np.arange(order[0].size).reshape(order[0].shape)
        cell = np.take_along_axis(np.broadcast_to(row, order.shape), order, 2)[stands]
        total[part] = np.bincount(cell, above[stands], row.size).reshape(row.shape)
        times[part] = np.bincount(cell, minlength=row.size).reshape(row.shape)
    with np.errstate(invalid="ignore"):
        return total / times
