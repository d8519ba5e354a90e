"""Model the attraction of candidates, and find the positions to which scores rank them.

The attraction of a candidate is the expected reward once somebody looks at it. A doubly robust
estimate uses a model of it. Errors of the model bias the estimate only where weights are clipped,
and a good model narrows its interval.

In shapes, N is the number of exposures, C of candidates, R of rows and S of scorers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import PoissonRegressor
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from training.evaluation.counterfactual import Counterfactual
from training.examination.placements import F64, I64, Flags

# Each fold of viewers is predicted by a model of the other fold.
NUM_FOLDS = 2
TIE_SEED = 0
# The penalty of squared coefficients. It is small enough not to bias the predictions.
_L2 = 1e-4


def ranked(score: F64, is_drawn: Flags) -> I64:
    """Return the position `[N, C]` of each candidate by descending score.

    Candidates that were not drawn keep their positions, and the others share the remaining ones.
    Ties are broken at random, because breaking them by the shown position would favour the
    candidates that the draw favoured.
    """
    tie = np.random.default_rng(TIE_SEED).random(score.shape)
    key = np.where(is_drawn, -np.where(np.isfinite(score), score, -np.inf), np.inf)
    order = np.lexsort((tie, key, ~is_drawn), axis=1)
    free = np.argsort(~is_drawn, axis=1, kind="stable")
    place = np.take_along_axis(free, np.argsort(order, axis=1), axis=1)
    return np.where(is_drawn, place, np.arange(score.shape[1]))


def attraction(known: Counterfactual, scores: F64) -> F64:
    """Predict the attraction `[N, C]` with `modelled` from the log odds `[N, C, S]` of scorers."""
    drawn, rows = known.drawn, known.is_drawn
    exposure = np.broadcast_to(known.examination, rows.shape)[rows]
    cluster = np.broadcast_to(drawn.cluster[:, None], rows.shape)[rows]
    found = np.zeros(rows.shape)
    found[rows] = modelled(drawn.reward[rows], exposure, cluster, scores[rows])[0]
    return found


def modelled(reward: F64, exposure: F64, cluster: I64, odds: F64) -> tuple[F64, Callable[[F64], F64]]:
    """Predict the attraction `[R]` of R candidates from the log odds `[R, S]` of S scorers.

    The model is a Poisson regression of the events `reward` `[R]` with the examination as
    `exposure` `[R]` (McCullagh and Nelder 1989, section 6.2). It is cross-fitted over folds of the
    viewers `cluster` `[R]`.

    Also returns a function. Given factors `[R]`, it returns the influence `[R]` of each row,
    through the fitted model, on the sum of factors times attractions (Newey and McFadden 1994,
    "Large sample estimation and hypothesis testing", section 6).
    """
    columns = np.clip(np.where(np.isfinite(odds), odds, 0.0), -12.0, 12.0)
    columns = PolynomialFeatures(2, include_bias=False).fit_transform(columns)
    columns = StandardScaler().fit_transform(columns)
    whole = np.concatenate([columns, np.ones((len(columns), 1))], axis=1)
    rate = reward / exposure
    number = np.unique(cluster, return_inverse=True)[1]
    fold = np.random.default_rng(0).integers(NUM_FOLDS, size=number.max() + 1)[number]
    value, folds = np.zeros(len(rate)), []
    for i in range(NUM_FOLDS):
        trained = fold != i
        # Without any event there is nothing to fit. The prediction is 0 then, which turns the
        # doubly robust estimate into inverse propensity scoring.
        if rate[trained].any():
            model = PoissonRegressor(alpha=_L2, solver="newton-cholesky")
            model.fit(columns[trained], rate[trained], sample_weight=exposure[trained])
            predicted = model.predict(columns)
            value[~trained] = np.minimum(predicted[~trained], 1.0)
            mean = (predicted * exposure)[trained]
            information = (whole[trained].T * mean) @ whole[trained]
            information += _L2 * exposure[trained].sum() * np.eye(len(information))
            folds.append((trained, reward[trained] - mean, np.linalg.inv(information)))

    def influence(factor: F64) -> F64:
        found = np.zeros(len(factor))
        for trained, residual, inverse in folds:
            slope = (factor * value)[~trained] @ whole[~trained]
            found[trained] += residual * (whole[trained] @ (inverse @ slope))
        return found

    return value, influence
