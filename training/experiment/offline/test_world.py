"""A world small enough for a thousand runs: its law is known, and so is the value of any ranking in it.

A viewer is shown C candidates in an order drawn from noisy scores; each is looked at with θ(place) and then earns its
attraction, which depends on the candidate and, through the viewer's eagerness, ties a viewer's exposures together.
N exposures, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from serve.ranking.exploration import log_weight
from training.experiment.offline.counterfactual import Drawn
from training.experiment.offline.placements import F64

NUM_CANDIDATES = 12
PER_VIEWER = 3
HALF_LOOK = 4.0  # the place, from 0, at which half still look
SCORERS: Mapping[str, tuple[float, float]] = {
    "logging": (1.0, 1.0),
    "better": (1.0, 0.3),
    "worse": (1.0, 4.0),
    "reversed": (-1.0, 0.3),
}
"""Each scorer's log odds: so many times the truth's, and noise of this standard deviation; the truth's own is 1.2."""


@dataclass(frozen=True)
class Sample:
    """Exposures with their rewards, and each scorer's log odds `[N, C]` in the order shown; `worth` `[N, C]`: the
    attractions themselves."""

    drawn: Drawn
    odds: Mapping[str, F64]
    worth: F64


def examination() -> F64:
    """`[C]`"""
    return np.asarray(1.0 / (1.0 + np.arange(NUM_CANDIDATES) / HALF_LOOK), np.float64)


def sample(rng: Generator, num_viewers: int) -> Sample:
    """Some viewers' exposures, their orders drawn as `serve.ranking.exploration` draws them."""
    shape = (num_viewers * PER_VIEWER, NUM_CANDIDATES)
    viewer = np.repeat(np.arange(num_viewers), PER_VIEWER)
    truth = rng.normal(-2.2, 1.2, shape)
    eager = rng.normal(0.0, 0.4, num_viewers)[viewer][:, None]
    worth = 1 / (1 + np.exp(-truth - eager))
    odds = {name: slope * truth + rng.normal(0.0, noise, shape) for name, (slope, noise) in SCORERS.items()}
    weight = log_weight((1 / (1 + np.exp(-odds["logging"]))).astype(np.float32))
    order = np.argsort(-(weight + rng.gumbel(size=shape)), axis=1)
    worth, weight = (np.take_along_axis(values, order, 1) for values in (worth, weight))
    reward = (rng.random(shape) < worth * examination()).astype(np.float64)
    drawn = Drawn(weight, np.ones(shape, bool), reward, viewer)
    return Sample(drawn, {name: np.take_along_axis(values, order, 1) for name, values in odds.items()}, worth)


def true_values(num_viewers: int = 60_000, seed: int = 1) -> dict[str, float]:
    """What each scorer's ranking earns an exposure, over many of them."""
    many = sample(np.random.default_rng([seed, 2**31]), num_viewers)
    looked = examination()
    return {
        name: float((np.take_along_axis(many.worth, np.argsort(-odds, axis=1), 1) @ looked).mean())
        for name, odds in many.odds.items()
    }
