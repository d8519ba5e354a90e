"""Curve of examination: the probability that each position is examined, from randomised orders.

Under examination × attraction, an event at position k has probability θ(k)·a, where `a` depends
only on the candidate. Given that a drawn candidate got its event, its position has the
distribution π(k)θ(k) / Σ π(l)θ(l), where π is the known distribution of its position over draws:
`a` cancels. Hence θ maximises the conditional likelihood of the positions of events (Andersen
1970, "Asymptotic properties of conditional maximum-likelihood estimators"). The randomised
positions are those of Agarwal, Zaitsev, Wang, Li, Najork and Joachims (2019, "Estimating position
bias without intrusive interventions").
log θ is a quadratic spline in log(1 + position), with θ(0) = 1. Letters: E events, B bins,
P parameters, N clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import SplineTransformer

from training.examination.placements import F64, I64, Bins, Counts

NUM_KNOTS = 4
# Penalty of a squared parameter in events, so that a position without events has a unique solution.
RIDGE = 1e-3
# Precision of the departure of log θ from a multiple of a learned curve, whose shape need not be
# right: half of its standard deviation.
DEPARTURE = 4.0
# Newton's method converges in fewer steps.
_NUM_STEPS = 50
Prior = tuple[F64, F64]
# From the parameters [P] to the score [P], the information [P, P], and the influence of each
# cluster on the score [N, P].
Slopes = Callable[[F64], tuple[F64, F64, F64]]


@dataclass(frozen=True)
class Curve:
    """Examination curve over bins of positions.

    `theta` `[B]`; `basis` `[B, P]`: ∂ log θ / ∂ parameter; `influence` `[N, P]` of each cluster on
    the parameters; `covariance` `[P, P]` of these, by the information of events and prior.
    """

    theta: F64
    basis: F64
    influence: F64
    covariance: F64


def prior(bins: Bins, learned: F64 | None = None) -> Prior:
    """Return a basis of log θ, `[B, P]`, which is 0 at the first position, and its ridge `[P]`.

    With a `learned` log θ `[B]`, the basis holds multiples of it, and the rest is a departure. What
    the ranker knew makes a learned curve too steep, and few events tell by how much. Many overrule
    its shape too.
    """
    depth = np.log1p(bins.centre)[:, None]
    # With few bins, each position has a parameter of its own.
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

    `counts` `[E, B]` are the candidate's bins over draws, `place` `[E]` the bin at which it was
    shown, `cluster` `[E]` its exposure or viewer, `prior` that of `prior`.
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
    """Return the parameters `[P]` of a log θ of these `columns`, their covariance, and influences.

    Newton's method on a concave likelihood with the penalty `ridge` `[P, P]`; no step moves log θ
    by more than 1. The influences are those of the clusters on the score `[N, P]`.
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
