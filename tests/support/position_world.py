"""Small simulated world in which the true value of any ranking is known.

An exposure shows C candidates in an order drawn from noisy scores. Each candidate is examined
with probability θ(position) and then earns its attraction. The attraction depends on the
candidate and on the viewer's eagerness, which correlates the exposures of a viewer. The world is
small enough for a thousand runs. Letters: N exposures, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from serve.ranking.exploration import log_weight
from serve.ranking.slate.pins import pinned
from training.evaluation.counterfactual import Drawn
from training.examination.placements import F64

NUM_CANDIDATES = 12
PER_VIEWER = 3
# Position, counted from 0, that half of the viewers look at.
HALF_LOOK = 4.0
# The log odds of each scorer are the true ones, times a factor, plus noise. The true log odds have
# a standard deviation of 1.2. An entry is (factor, standard deviation of the noise).
SCORERS: Mapping[str, tuple[float, float]] = {
    "logging": (1.0, 1.0),
    "better": (1.0, 0.3),
    "worse": (1.0, 4.0),
    "reversed": (-1.0, 0.3),
}


@dataclass(frozen=True)
class WorldSample:
    """Exposures with rewards, the log odds `[N, C]` of each scorer, and the true attractions.

    Candidates are in the order in which they were shown. `worth` `[N, C]` are the attractions.
    """

    drawn: Drawn
    odds: Mapping[str, F64]
    worth: F64


def examination() -> F64:
    """Return the true probability `[C]` that a viewer looks at a position."""
    return np.asarray(1.0 / (1.0 + np.arange(NUM_CANDIDATES) / HALF_LOOK), np.float64)


def sample(rng: Generator, num_viewers: int, pins: float = 0.0) -> WorldSample:
    """Draw exposures of some viewers. Orders are drawn as `serve.ranking.exploration` draws them.

    In a share `pins` of the requests, the first candidate is pinned to the second place, and the
    best one to the fifth.
    """
    shape = (num_viewers * PER_VIEWER, NUM_CANDIDATES)
    viewer = np.repeat(np.arange(num_viewers), PER_VIEWER)
    truth = rng.normal(-2.2, 1.2, shape)
    eager = rng.normal(0.0, 0.4, num_viewers)[viewer][:, None]
    worth = 1 / (1 + np.exp(-truth - eager))
    odds = {name: slope * truth + rng.normal(0.0, noise, shape) for name, (slope, noise) in SCORERS.items()}
    weight = log_weight((1 / (1 + np.exp(-odds["logging"]))).astype(np.float32))
    order = np.argsort(-(weight + rng.gumbel(size=shape)), axis=1)
    is_pinned = np.zeros(shape, bool)
    for i in np.flatnonzero(rng.random(len(viewer)) < pins) if pins else ():
        chosen = {1: 0, 4: 1 + int(truth[i, 1:].argmax())}
        order[i] = pinned([j for j in order[i].tolist() if j not in chosen.values()], chosen)
        is_pinned[i, list(chosen.values())] = True
    weight[is_pinned] = -np.inf
    worth, weight = (np.take_along_axis(values, order, 1) for values in (worth, weight))
    reward = (rng.random(shape) < worth * examination()).astype(np.float64)
    drawn = Drawn(weight, reward, viewer)
    odds = {name: np.take_along_axis(values, order, 1) for name, values in odds.items()}
    return WorldSample(drawn, odds, worth)


def true_values() -> dict[str, float]:
    """Return the true value per exposure of each scorer's ranking, as a mean of many exposures."""
    many = sample(np.random.default_rng([1, 2**31]), 60_000)
    theta = examination()
    return {
        name: float((np.take_along_axis(many.worth, np.argsort(-odds, axis=1), 1) @ theta).mean())
        for name, odds in many.odds.items()
    }
