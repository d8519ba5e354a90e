"""Exploration: an order drawn at random from the scores, and how probable each of its picks was.

The draw is Plackett–Luce (Plackett 1975, "The analysis of permutations"): one candidate after the other, each with
probability proportional to its weight among those that are left. C candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TEMPERATURE = 1.0
"""At 1 a candidate's weight is its odds; towards 0 the draw becomes the ranking, far above it a shuffle."""
NEAREST = 1e-6
"""How near a score may come to 0 and 1 in a draw: nobody is certain to stand first, or last."""


def draw(score: F32, rng: Generator) -> tuple[I64, F64]:
    """(score `[C]`, NaN where unscored) → (order `[C]`, places in `score`, first pick first; propensity `[C]`).

    `propensity[k]` is the probability of the k-th pick given those before it, so that their product is the
    order's. The unscored are never drawn: they follow in their order with propensity 1.
    """
    scored = np.flatnonzero(~np.isnan(score))
    weight = log_weight(score[scored])
    # Log weights with Gumbel noise, sorted, are such a draw (Yellott 1977, "The relationship between Luce's choice
    # axiom, Thurstone's theory of comparative judgment, and the double exponential distribution").
    picks = np.argsort(-(weight + rng.gumbel(size=len(weight))), kind="stable")
    propensity = np.ones(len(score))
    propensity[: len(picks)] = pick_probability(weight[picks])
    return np.concatenate([scored[picks], np.flatnonzero(np.isnan(score))]), propensity


def log_weight(score: F32) -> F64:
    """The logarithm of each score's weight in a draw: of its odds, over the temperature."""
    p = np.clip(score.astype(np.float64), NEAREST, 1.0 - NEAREST)
    return np.asarray((np.log(p) - np.log1p(-p)) / TEMPERATURE, np.float64)


def pick_probability(weight: F64) -> F64:
    """Of log weights in the order of the picks, each pick's probability given those before it."""
    left = np.logaddexp.accumulate(weight[::-1])[
        ::-1
    ]  # of the weights from here on, the logarithm of the sum
    return np.asarray(np.exp(weight - left), np.float64)
