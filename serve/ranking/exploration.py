"""Exploration: draw a random order from the scores, with the probability of each pick.

The draw is Plackett–Luce (Plackett 1975, "The analysis of permutations"): candidates are picked one
after the other, each with a probability proportional to its weight among those that are left.
Shapes: C candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from serve.features.slots import F32, F64, I64

NEAREST = 1e-6
"""Clip scores to [1e-6, 1 − 1e-6] in a draw, so that no candidate is surely first or last."""


def draw(score: F32, rng: Generator) -> tuple[I64, F64]:
    """Draw an order: score `[C]`, NaN where unscored → (order `[C]`, propensity `[C]`).

    `order` holds indices into `score`, first pick first. `propensity[k]` is the probability of the
    k-th pick given the picks before it; their product is the probability of the order. Unscored
    candidates are not drawn: they follow in their given order with propensity 1.
    """
    scored = np.flatnonzero(~np.isnan(score))
    weight = log_weight(score[scored])
    # Sorting log weights with Gumbel noise gives such a draw (Yellott 1977, "The relationship
    # between Luce's choice axiom, Thurstone's theory of comparative judgment, and the double
    # exponential distribution").
    picks = np.argsort(-(weight + rng.gumbel(size=len(weight))), kind="stable")
    propensity = np.ones(len(score))
    propensity[: len(picks)] = pick_probability(weight[picks])
    return np.concatenate([scored[picks], np.flatnonzero(np.isnan(score))]), propensity


def log_weight(score: F32 | F64) -> F64:
    """Return the log weight of each score: its log-odds."""
    p = np.clip(score.astype(np.float64), NEAREST, 1.0 - NEAREST)
    return np.asarray(np.log(p) - np.log1p(-p), np.float64)


def pick_probability(weight: F64) -> F64:
    """Return the probability of each pick given the picks before it; `weight` is in pick order."""
    # Log of the sum of the weights that are left at each pick.
    left = np.logaddexp.accumulate(weight[::-1])[::-1]
    return np.asarray(np.exp(weight - left), np.float64)
