"""Exploration: draw a random order from the scores, with the probability of each pick.

The draw is Plackett–Luce (Plackett 1975, "The analysis of permutations"): candidates are picked one
after the other, each with a probability proportional to its weight among those that are left.

Shapes: C candidates.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.random import Generator

from serve.features.slots import F32, F64, I64
from serve.ranking.query import Slate
from serve.ranking.slate.pins import pinned

NEAREST = 1e-6
"""In a draw, probabilities are clipped to [1e-6, 1 − 1e-6], so that none is surely first or last."""

FLAT = 1e-12
"""Utilities of a slate that deviate relatively by less than this are equal, up to rounding."""


def explored(slate: Slate) -> Slate:
    """Return the slate with its scored candidates in a drawn order, and each pin at its place.

    Pins are left out of the draw. Rules do not apply, because they would change what was drawn.
    """
    query, places = slate.query, slate.order
    at_places = list(query.pins.values())
    score = np.where(np.isin(places, at_places), np.float32(np.nan), slate.score[places])
    rng = np.random.default_rng()
    drawn, propensity, weight = draw(score, rng, is_probability=query.weighing.is_share)
    order, place_before = places[drawn], None
    if query.pins:
        others = order[~np.isin(order, at_places)].tolist()
        shown = np.array(pinned(others, query.pins), np.int64)
        where = np.argsort(order)[shown]
        order, propensity, weight = shown, propensity[where], weight[where]
        place_before = np.argsort(places)[order]
    drawn_with = {"propensity": propensity, "draw": weight.astype(np.float32)}
    return msgspec.structs.replace(slate, order=order, place_before=place_before, **drawn_with)


def draw(score: F32, rng: Generator, *, is_probability: bool = True) -> tuple[I64, F64, F64]:
    """Draw an order from scores `[C]`, NaN where unscored; return order, propensity, log weight.

    The three have the shape `[C]`. `order` holds indices into `score`, first pick first.
    `propensity[k]` is the probability of the k-th pick given the picks before it; their product is
    the probability of the order. The log weights are in this order too. Unscored candidates are not
    drawn: they follow in their given order with propensity 1 and log weight −inf.
    """
    scored = np.flatnonzero(~np.isnan(score))
    weight = log_weight(score[scored], is_probability=is_probability)
    # Sorting log weights with Gumbel noise gives such a draw (Yellott 1977, "The relationship
    # between Luce's choice axiom, Thurstone's theory of comparative judgment, and the double
    # exponential distribution").
    picks = np.argsort(-(weight + rng.gumbel(size=len(weight))), kind="stable")
    propensity, drawn = np.ones(len(score)), np.full(len(score), -np.inf)
    propensity[: len(picks)] = pick_probability(weight[picks])
    drawn[: len(picks)] = weight[picks]
    return np.concatenate([scored[picks], np.flatnonzero(np.isnan(score))]), propensity, drawn


def log_weight(score: F32 | F64, *, is_probability: bool = True) -> F64:
    """Return the log weight of each score; NaN stays NaN.

    For a probability it is the log-odds. Other utilities have neither a zero nor a unit of their
    own: their log weight is the distance from the mean of the slate, in standard deviations of the
    slate, and 0 if all are equal. The slate is the last axis.
    """
    if not is_probability:
        return _standardized(score.astype(np.float64))
    p = np.clip(score.astype(np.float64), NEAREST, 1.0 - NEAREST)
    return np.asarray(np.log(p) - np.log1p(-p), np.float64)


def _standardized(score: F64) -> F64:
    known = ~np.isnan(score)
    num = np.maximum(known.sum(axis=-1, keepdims=True), 1)
    distance = score - np.where(known, score, 0.0).sum(axis=-1, keepdims=True) / num
    square = np.where(known, distance, 0.0) ** 2
    deviation = np.sqrt(square.sum(axis=-1, keepdims=True) / num)
    # Equal scores differ only by rounding.
    least = FLAT * np.max(np.abs(score), axis=-1, keepdims=True, initial=0.0, where=known)
    is_flat = deviation <= least
    return np.where(is_flat & known, 0.0, distance / np.where(is_flat, 1.0, deviation))


def pick_probability(weight: F64) -> F64:
    """Return the probability of each pick given the picks before it; `weight` is in pick order."""
    # At each pick, the logarithm of the sum of the weights that are left.
    left = np.logaddexp.accumulate(weight[::-1])[::-1]
    return np.asarray(np.exp(weight - left), np.float64)
