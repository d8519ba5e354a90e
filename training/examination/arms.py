"""Estimate examination from an experiment's arms, which show the same candidates elsewhere.

Viewers are assigned to arms at random. So rows with similar features have the same mean attraction
in each arm, even if a ranker knew more than the features. A label at position k, divided by θ(k),
has the attraction as its mean. Hence in each cell of similar rows

    mean of label / θ(k) over an arm = the same mean over the other arms

This is known as intervention harvesting (Agarwal, Zaitsev, Wang, Li, Najork and Joachims 2019,
"Estimating position bias without intrusive interventions"). θ solves the logarithms of these
equations by Gauss–Newton steps, with their inverse variances as weights (Hansen 1982, "Large sample
properties of generalized method of moments estimators").

A row's cell is given by its expected position in the arm and its expected position in the other
arms. LightGBM learns both from other viewers' rows, so that the row's own position never matters.

In shapes, N is the number of rows, B of bins of positions, P of parameters, C of cells and V of
viewers.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array

from serve.features.slots import F64
from serve.model.encoder import Encoder
from training.data.dataset import Dataset
from training.examination.curve import Prior, newton
from training.examination.learn import by_others, halves, quantiles
from training.examination.placements import Bins

# Two expected positions are divided into at most this many quantiles, whose products are the cells.
# Their number gives a cell about this many events of the arm or of the others, whichever has fewer.
# With few events, the logarithm of their mean would be too low.
MAX_QUANTILES, CELL_EVENTS = 12, 40
# Cells in which either side has fewer events are left out.
MIN_CELL_EVENTS = 10
# The expected positions of what two arms show may differ by this many standard deviations. If they
# differ more, the arms cut their lists and show other candidates (Austin 2009, "Balance diagnostics
# for comparing the distribution of baseline covariates between treatment groups", section 3.1).
MAX_IMBALANCE = 0.1


def compare_arms(rows: Dataset, encoder: Encoder, bins: Bins, prior: Prior) -> tuple[F64, F64] | None:
    """Return log θ of each bin `[B]` and its standard error `[B]`, with viewers as clusters.

    All rows must belong to arms, of which there are two or more. Returns None if the arms do not
    show the same candidates.
    """
    columns, ridge = prior
    assert rows.arm is not None
    place, viewer = bins.of[rows.position], np.unique(rows.viewer, return_inverse=True)[1]
    depth, half, sides = np.log1p(rows.position), halves(viewer), []
    # The largest arm has the number 0. It is always among the other arms.
    for arm in np.unique(rows.arm)[1:]:
        is_in, cell = rows.arm == arm, np.zeros(len(place), np.int64)
        fewer = np.bincount(is_in, rows.label).min()
        num = min(max(int(np.sqrt(fewer / CELL_EVENTS)), 2), MAX_QUANTILES)
        for known in (is_in, ~is_in):
            expected = by_others(rows, encoder, half, "regression", depth, known)
            if abs(expected[is_in].mean() - expected[~is_in].mean()) > MAX_IMBALANCE * expected.std():
                return None
            cell = cell * num + quantiles(expected, num)
        sides.append((is_in, cell, num * num))

    def slopes(beta: F64) -> tuple[F64, F64, F64]:
        weight = rows.label * np.exp(-columns @ beta)[place]
        information, score = np.zeros((len(beta), len(beta))), np.zeros(len(beta))
        of_viewer = np.zeros((int(viewer.max()) + 1, len(beta)))
        for is_in, cell, num in sides:
            side, shape = 2 * cell + is_in, (num, 2)
            count, events = (np.bincount(side, x, 2 * num) for x in (None, rows.label))
            by_place = coo_array((weight, (side, place)), (2 * num, len(bins))).toarray()
            total = np.maximum(by_place.sum(axis=1), 1e-12)
            gap = np.diff(np.log(total / np.maximum(count, 1)).reshape(shape))[:, 0]
            slope = np.diff((by_place / total[:, None] @ columns).reshape(*shape, -1), axis=1)[:, 0]
            variance = (np.bincount(side, weight**2, 2 * num) / total**2).reshape(shape).sum(axis=1)
            is_used = (events.reshape(shape) >= MIN_CELL_EVENTS).all(axis=1)
            weighed = slope * (is_used / np.maximum(variance, 1e-12))[:, None]
            information += slope.T @ weighed
            score += weighed.T @ gap
            # The influence of each row on the difference in its cell.
            own = np.where(is_in, 1, -1) * (weight / total[side] - 1 / count[side])
            of_viewer += coo_array((own, (viewer, cell)), (len(of_viewer), num)).tocsr() @ weighed
        return score, information, of_viewer

    beta, covariance, of_viewer = newton(slopes, columns, np.diag(ridge))
    # The variance between viewers alone would be too small, because the ridge pulls θ to the shape
    # of the learned curve.
    variance = ((of_viewer @ covariance @ columns.T) ** 2).sum(axis=0)
    return columns @ beta, np.sqrt(variance + (columns @ covariance * columns).sum(axis=1))
