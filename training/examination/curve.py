"""Fit the curve of examination, which says how often each position is looked at, to drawn orders.

If an event's probability is examination × attraction, an event at position k has the probability
θ(k)·a, where `a` depends only on the candidate. Given that a drawn candidate got its event, its
position has the distribution π(k)θ(k) / Σ π(l)θ(l), where π is the known distribution of its
position over draws. The attraction `a` cancels out. So θ is found by maximising the conditional
likelihood of the positions of events (Andersen 1970, "Asymptotic properties of conditional
maximum-likelihood estimators"). The idea of randomised positions is that of Agarwal, Zaitsev, Wang,
Li, Najork and Joachims (2019, "Estimating position bias without intrusive interventions").

log θ is a quadratic spline in log(1 + position), with θ(0) = 1. In shapes, E is the number of
events, B of bins, P of parameters and N of clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import SplineTransformer

from training.examination.placements import F64, I64, Bins, Counts

NUM_KNOTS = 4
# The penalty of a squared parameter, in events. It gives a position without events a unique
# solution.
RIDGE = 1e-3
# The precision with which log θ is held to a multiple of a learned curve, whose shape need not be
# right. It allows a departure with a standard deviation of one half.
DEPARTURE = 4.0
# The most steps of Newton's method, which converges in fewer.
_NUM_STEPS = 50
Prior = tuple[F64, F64]
# Maps parameters [P] to the score [P], the information [P, P], and the influence [N, P] of each
# cluster on the score.
Slopes = Callable[[F64], tuple[F64, F64, F64]]


@dataclass(frozen=True)
class Curve:
    """Examination curve over bins of positions.

    Attributes:
        theta: `[B]`, the examination of each bin.
        basis: `[B, P]`, ∂ log θ / ∂ parameter.
        influence: `[N, P]`, the influence of each cluster on the parameters.
        covariance: `[P, P]`, that of the parameters, by the information in the events and the
        prior.
    """

    theta: F64
    basis: F64
    influence: F64
    covariance: F64


def prior(bins: Bins, learned: F64 | None = None) -> Prior:
    """Return a basis `[B, P]` of log θ, which is 0 at the first position, and its ridge `[P]`.

    With a `learned` log θ `[B]`, the first parameter is a multiple of it, and the others are
    departures from that. A learned curve is too steep if the ranker knew more than the features.
    A few events are enough to correct the steepness. Many events correct the shape too.
    """
    depth = np.log1p(bins.centre)[:, None]
    # With few bins, each bin has a parameter of its own.
    columns = np.eye(len(bins))[:, 1:]
    if len(bins) > NUM_KNOTS + 1:
        columns = SplineTransformer(n_knots=NUM_KNOTS, degree=2).fit_transform(depth)[:, 1:]
        columns -= columns[0]
    if learned is None:
        return columns, np.full(columns.shape[1], RIDGE)
    ridge = np.append(RIDGE, np.full(columns.shape[1], DEPARTURE))
    return np.concatenate([learned[:, None], columns], axis=1), ridge


def fit_curve(counts: Counts, place: I64, cluster: I64, num_clusters: int, prior: Prior) -> Curve:
    """Fit the curve to E events on drawn candidates.

    Args:
        counts: `[E, B]`, how often draws put the event's candidate into each bin.
        place: `[E]`, the bin in which it was shown.
        cluster: `[E]`, the number of its exposure or viewer.
        prior: the result of the function `prior`.
    """
    columns, ridge = prior
    density = counts.astype(np.float64)

    def slopes(beta: F64) -> tuple[F64, F64, F64]:
        mass = density * np.exp(columns @ beta)
        mass /= mass.sum(axis=1, keepdims=True)
        expected = mass @ columns
        information = columns.T @ (mass.sum(axis=0)[:, None] * columns) - expected.T @ expected
        moved = np.zeros((num_clusters, len(beta)))
        np.add.at(moved, cluster, columns[place] - expected)
        return moved.sum(axis=0), information, moved

    beta, covariance, moved = newton(slopes, columns, np.diag(ridge))
    return Curve(np.exp(columns @ beta), columns, moved @ covariance * num_clusters, covariance)


def newton(slopes: Slopes, columns: F64, ridge: F64) -> tuple[F64, F64, F64]:
    """Maximise a penalised likelihood of log θ, which is a combination of `columns`.

    This is Newton's method on a concave likelihood with the penalty `ridge` `[P, P]`. No step moves
    log θ by more than 1.

    Returns:
        The parameters `[P]`, their covariance, and the influence `[N, P]` of each cluster on the
        score.
    """
    beta = np.zeros(columns.shape[1])
    for _ in range(_NUM_STEPS):
        score, information, moved = slopes(beta)
        covariance = np.asarray(np.linalg.inv(information + ridge), np.float64)
        step = covariance @ (score - ridge @ beta)
        beta = beta + step * min(1.0, 1.0 / max(float(np.abs(columns @ step).max()), 1e-12))
        if float(np.abs(step).max(initial=0.0)) < 1e-8:
            break
    return beta, covariance, moved
