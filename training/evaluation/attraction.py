"""Model of the attraction of candidates, and the positions that scores rank them to.

Errors of the model do not bias the doubly robust estimate; a good model narrows its interval.
Letters: N exposures, C candidates, S scorers.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import PoissonRegressor
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from training.evaluation.counterfactual import Counterfactual
from training.examination.placements import F64, I64, Flags

# Predict each fold of viewers with a model of the other one.
NUM_FOLDS = 2
TIE_SEED = 0
# Penalty of squared coefficients, small enough not to bias the predictions.
_L2 = 1e-4


def ranked(score: F64, is_drawn: Flags) -> I64:
    """Return the position `[N, C]` of each candidate by descending score.

    Candidates that were not drawn keep their positions. Ties are broken at random: breaking them
    by the shown position would favour the candidates that the draw favoured.
    """
    tie = np.random.default_rng(TIE_SEED).random(score.shape)
    key = np.where(is_drawn, -np.where(np.isfinite(score), score, -np.inf), np.inf)
    order = np.lexsort((tie, key, ~is_drawn), axis=1)
    return np.where(is_drawn, np.argsort(order, axis=1), np.arange(score.shape[1]))


def attraction(known: Counterfactual, scores: F64) -> F64:
    """Return the predicted attraction `[N, C]` from the log odds `[N, C, S]` of S scorers.

    A Poisson regression of the events with the examination as exposure (McCullagh and Nelder
    1989, section 6.2), cross-fitted over folds of viewers.
    """
    drawn, rows = known.drawn, known.is_drawn
    columns = scores[rows]
    columns = np.clip(np.where(np.isfinite(columns), columns, 0.0), -12.0, 12.0)
    columns = PolynomialFeatures(2, include_bias=False).fit_transform(columns)
    columns = StandardScaler().fit_transform(columns)
    exposure = np.broadcast_to(known.examination, rows.shape)[rows]
    rate = drawn.reward[rows] / exposure
    cluster = np.broadcast_to(drawn.cluster[:, None], rows.shape)[rows]
    number = np.unique(cluster, return_inverse=True)[1]
    fold = np.random.default_rng(0).integers(NUM_FOLDS, size=number.max() + 1)[number]
    modelled = np.zeros(len(rate))
    for i in range(NUM_FOLDS):
        others = fold != i
        # Without any event there is nothing to fit: predict 0, and the estimate becomes IPS.
        if rate[others].any():
            model = PoissonRegressor(alpha=_L2, solver="newton-cholesky")
            model.fit(columns[others], rate[others], sample_weight=exposure[others])
            modelled[~others] = np.minimum(model.predict(columns[~others]), 1.0)
    found = np.zeros(rows.shape)
    found[rows] = modelled
    return found
