"""Examination learned from a log as it was shown, apart from what features say of the ranking.

Where the ranking knew more than the features, a candidate that it moved up is better than its
features say, and θ is too steep: no log of one deterministic ranking can tell. So no decision rests
on this curve alone (`training.evaluation.paired`).

P(label) = θ(k)·a(x) for a row of features x at position k. The score for log θ that is efficient
under Poisson noise, Σ (B(k) − m(x)) (y − θ(k)·a(x)) = 0 with m = E[Bθ | x] / E[θ | x], does not
move to first order with errors of `a` and `m` (Neyman orthogonality: Chernozhukov, Chetverikov,
Demirer, Duflo, Hansen, Newey and Robins 2018, "Double/debiased machine learning for treatment and
structural parameters"). It thus compares rows that the ranking expected at about the same position,
and that other candidates of their slate moved up or down. LightGBM learns E[y | x] and
E[log(1 + k) | x] from other viewers' rows. Rows of one cell have about the same expected position,
and in it the positions have their observed distribution. Hence a = E[y | x] / E[θ | cell].
Letters: N rows, B bins of positions, P = B − 1 parameters, C cells, V viewers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from serve.features.slots import F64, I64
from serve.model.encoder import Encoder
from training.data.dataset import Dataset
from training.data.encoding import tree_columns
from training.examination.curve import newton
from training.examination.placements import Bins, Flags

# Cells of equal count. In more of them rows are more alike, and bins hold fewer.
NUM_CELLS = 60
# Precision of the difference of log θ between two bins, so that bins without events are like their
# neighbours: at 4, a factor e is two standard deviations.
SMOOTHNESS = 4.0
TREES = {"learning_rate": 0.1, "num_leaves": 15, "min_data_in_leaf": 100, "feature_fraction": 0.5}
TREES |= {"cat_smooth": 100, "cat_l2": 100, "num_threads": 1, "seed": 0, "verbose": -1}
TREES |= {"force_row_wise": True}
NUM_TREES = 80


def learn(rows: Dataset, encoder: Encoder, bins: Bins) -> tuple[F64, F64]:
    """Return log θ of each bin and its standard error with viewers as clusters, [B], 0 at bin 0.

    The rows must hold two viewers or more.
    """
    place, label = bins.of[rows.position], rows.label.astype(np.float64)
    viewer = np.unique(rows.viewer, return_inverse=True)[1]
    chance, cell = _from_others(rows, encoder, viewer)

    def table(values: F64) -> F64:
        """Sum values [N] of each cell and bin, [C, B]."""
        return np.asarray(coo_array((values, (cell, place)), (2 * NUM_CELLS, len(bins))).toarray())

    shown, chances = table(np.ones(len(label))), table(chance)
    density = shown / np.maximum(shown.sum(axis=1, keepdims=True), 1.0)
    basis = np.eye(len(bins))[:, 1:]
    prior = SMOOTHNESS * np.diff(basis, axis=0).T @ np.diff(basis, axis=0)

    def slopes(beta: F64) -> tuple[F64, F64, F64]:
        theta = np.exp(basis @ beta)
        examined = np.maximum(density @ theta, 1e-9)
        mean = (density * theta) @ basis / examined[:, None]
        expected = chances * theta / examined[:, None]
        cross = (expected @ basis).T @ mean
        information = np.diag(expected.sum(axis=0)[1:]) - cross - cross.T
        information += (mean.T * expected.sum(axis=1)) @ mean
        rest = label - theta[place] * chance / examined[cell]
        of_viewer = coo_array((rest, (viewer, place))).tocsr() @ basis
        of_viewer -= coo_array((rest, (viewer, cell))).tocsr() @ mean[: cell.max() + 1]
        return of_viewer.sum(axis=0), information, of_viewer

    beta, covariance, of_viewer = newton(slopes, basis, prior)
    # Where nothing moves rows of a cell, only the prior holds θ, and the data have no error.
    variance = np.maximum(((of_viewer @ covariance) ** 2).sum(axis=0), np.diag(covariance))
    return np.append(0.0, beta), np.append(0.0, np.sqrt(variance))


def _from_others(rows: Dataset, encoder: Encoder, viewer: I64) -> tuple[F64, I64]:
    """Return E[label | x] and the cell of each row, [N], learned from the other half's viewers."""
    half = halves(viewer)
    depth = by_others(rows, encoder, half, "regression", np.log1p(rows.position))
    cell = NUM_CELLS * half
    for fold in (0, 1):
        cell[half == fold] += quantiles(depth[half == fold], NUM_CELLS)
    return by_others(rows, encoder, half, "binary", rows.label), cell


def halves(viewer: I64) -> I64:
    """Return the half of viewers, 0 or 1, to which each row belongs, [N]."""
    return np.random.default_rng(0).permutation(int(viewer.max()) + 1)[viewer] % 2


def by_others(
    rows: Dataset,
    encoder: Encoder,
    half: I64,
    objective: str,
    target: NDArray[Any],
    known: Flags | bool = True,
) -> F64:
    """Predict a target [N] from the features by LightGBM on the `known` rows of the other half."""
    import lightgbm as trees

    columns, categorical = tree_columns(encoder, rows.matrix)
    found = np.empty(len(rows))
    for fold in (0, 1):
        mine, others = half == fold, (half != fold) & known
        given = trees.Dataset(columns[others], target[others], categorical_feature=categorical)
        model = trees.train(TREES | {"objective": objective}, given, NUM_TREES)
        found[mine] = model.predict(columns[mine], num_threads=1)
    return found


def quantiles(values: F64, num: int) -> I64:
    """Return which of `num` parts of equal count each value is in, [N]."""
    return np.searchsorted(np.quantile(values, np.linspace(0, 1, num + 1)[1:-1]), values)
