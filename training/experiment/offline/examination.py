"""How likely each place is looked at, from drawn orders, whatever the candidates are worth.

Under examination × attraction, an event at place k has probability θ(k)·a with `a` of the candidate alone. Given that a
drawn candidate got its event, its place then has the law π(k)θ(k) / Σ π(l)θ(l), where π is the draw's known law of
its place: `a` cancels. So θ maximises the conditional likelihood of the places of events (Andersen 1970, "Asymptotic
properties of conditional maximum-likelihood estimators"); the randomised places that it rests on are those of Agarwal,
Zaitsev, Wang, Li, Najork and Joachims (2019, "Estimating position bias without intrusive interventions").
log θ is a quadratic spline in log(1 + place); θ(0) = 1. Letters: E events, B bins, P parameters, N exposures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import SplineTransformer

from serve.contract.errors import TabrankError
from training.experiment.offline.placements import F64, I64, Bins, Counts

NUM_KNOTS = 4
RIDGE = 1e-3
"""What a squared parameter costs, in events: only to have one answer where a place had no events at all."""
MIN_EVENTS = 100
_NUM_STEPS = 50


@dataclass(frozen=True)
class Curve:
    """θ over the bins, `theta` `[B]`; its `basis` `[B, P]`: ∂ log θ / ∂ parameter; and how each exposure moved the
    parameters: `influence` `[N, P]`."""

    theta: F64
    basis: F64
    influence: F64


def basis(bins: Bins) -> F64:
    """`[B, P]`; 0 at the first place."""
    depth = np.log1p(bins.centre)[:, None]
    if len(bins) <= NUM_KNOTS + 1:  # a parameter a place
        return np.eye(len(bins))[:, 1:]
    values = SplineTransformer(n_knots=NUM_KNOTS, degree=2).fit_transform(depth)[:, 1:]
    return np.asarray(values - values[0], np.float64)


def fit_curve(counts: Counts, place: I64, exposure: I64, num_exposures: int, bins: Bins) -> Curve:
    """From E events on drawn candidates: their `counts` `[E, B]` over draws, the bin where each stood, `place` `[E]`,
    and its `exposure` `[E]`.

    Raises:
        TabrankError: for too few events.
    """
    if len(place) < MIN_EVENTS:
        raise TabrankError(
            f"{len(place)} events in exposures whose order was drawn: what is looked at cannot be told from fewer than "
            f"{MIN_EVENTS}; gather more, or raise the arm's `explore`"
        )
    columns = basis(bins)
    law = counts.astype(np.float64)
    beta = np.zeros(columns.shape[1])
    for _ in range(
        _NUM_STEPS
    ):  # Newton's: the likelihood is concave, with a step that is cut where it overshoots
        score, information = _derivatives(law, place, columns, beta)
        step = np.linalg.solve(information, score.sum(axis=0) - RIDGE * beta)
        beta = beta + step * min(1.0, 2.0 / max(float(np.abs(columns @ step).max()), 1e-12))
        if float(np.abs(step).max(initial=0.0)) < 1e-8:
            break
    score, information = _derivatives(law, place, columns, beta)
    moved = np.zeros((num_exposures, len(beta)))
    np.add.at(moved, exposure, score)
    influence = moved @ np.linalg.inv(information / num_exposures)
    return Curve(np.exp(columns @ beta), columns, influence)


def _derivatives(law: F64, place: I64, columns: F64, beta: F64) -> tuple[F64, F64]:
    """Of the conditional log likelihood: each event's gradient `[E, P]`, and minus the Hessian `[P, P]`."""
    mass = law * np.exp(columns @ beta)
    mass /= mass.sum(axis=1, keepdims=True)
    expected = mass @ columns
    second = columns.T @ (mass.sum(axis=0)[:, None] * columns) - expected.T @ expected
    return columns[place] - expected, second + RIDGE * np.eye(len(beta))
