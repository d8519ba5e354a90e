"""A model of what candidates earn where they are looked at, and the places that scores rank them to.

It need not be right: it only narrows the interval of the doubly robust estimate. N exposures, C candidates.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import PoissonRegressor
from sklearn.preprocessing import StandardScaler

from training.experiment.offline.counterfactual import Counterfactual
from training.experiment.offline.placements import F64, I64, Flags

NUM_FOLDS = 2
TIE_SEED = 0
_L2 = 1e-4


def ranked(score: F64, is_drawn: Flags) -> I64:
    """The place of each candidate `[N, C]` by its score, highest first; what is not drawn stays where it stands.

    Ties are broken at random: by the place shown would favour what the draw favoured.
    """
    tie = np.random.default_rng(TIE_SEED).random(score.shape)
    key = np.where(is_drawn, -np.where(np.isfinite(score), score, -np.inf), np.inf)
    exposure = np.broadcast_to(np.arange(len(score))[:, None], score.shape)
    order = np.lexsort((tie.ravel(), key.ravel(), ~is_drawn.ravel(), exposure.ravel())).reshape(score.shape)
    order = order - np.arange(len(score))[:, None] * score.shape[1]
    place = np.empty(score.shape, np.int64)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(score.shape[1]), score.shape), axis=1)
    return np.where(is_drawn, place, np.arange(score.shape[1]))


def attraction(known: Counterfactual, scores: F64) -> F64:
    """`[N, C]` from the logarithms of odds `[N, C, S]` of S scorers, each fold of viewers by a model of the others.

    A Poisson regression of events with the examination as exposure (McCullagh and Nelder 1989, section 6.2).
    """
    drawn, rows = known.drawn, known.is_drawn
    columns = scores[rows]
    columns = np.clip(np.where(np.isfinite(columns), columns, 0.0), -12.0, 12.0)
    pairs = [columns[:, i] * columns[:, j] for i in range(columns.shape[1]) for j in range(i + 1)]
    columns = StandardScaler().fit_transform(np.column_stack([columns, *pairs]))
    looked = np.broadcast_to(known.looked, rows.shape)[rows]
    rate = drawn.reward[rows] / looked
    cluster = np.broadcast_to(drawn.cluster[:, None], rows.shape)[rows]
    number = np.unique(cluster, return_inverse=True)[1]
    fold = np.random.default_rng(0).integers(NUM_FOLDS, size=number.max() + 1)[number]
    modelled = np.empty(len(rate))
    for i in range(NUM_FOLDS):
        others = fold != i
        if not rate[others].any():  # nothing to learn from: nothing is modelled, and the estimate is IPS
            modelled[~others] = 0.0
            continue
        model = PoissonRegressor(alpha=_L2, solver="newton-cholesky")
        model.fit(columns[others], rate[others], sample_weight=looked[others])
        modelled[~others] = np.minimum(model.predict(columns[~others]), 1.0)
    found = np.zeros(rows.shape)
    found[rows] = modelled
    return found
