"""Learn examination from a log as it was shown, by comparing rows with similar features.

If the ranking knew more than the features, a candidate that it moved up is better than its features
say, and then the learned θ is too steep. No log of one deterministic ranking can show whether that
is so. Therefore no decision rests on this curve alone (see `training.evaluation.paired`).

The model is P(label) = θ(k)·a(x) for a row with features x at position k. The estimating equation
for log θ is the efficient one under Poisson noise, Σ (B(k) − m(x)) (y − θ(k)·a(x)) = 0 with
m = E[Bθ | x] / E[θ | x]. To first order, errors of `a` and `m` do not change its solution; this is
Neyman orthogonality (Chernozhukov, Chetverikov, Demirer, Duflo, Hansen, Newey and Robins 2018,
"Double/debiased machine learning for treatment and structural parameters"). The equation compares
rows that are expected at about the same position, and that the other candidates of their slates
moved up or down.

LightGBM learns E[y | x] and E[log(1 + k) | x] from other viewers' rows. The rows of one cell have
about the same expected position, and within a cell the positions have their observed distribution.
Hence a = E[y | x] / E[θ | cell].

In shapes, N is the number of rows, B of bins of positions, P = B − 1 of parameters, C of cells and
V of viewers.
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

# The number of cells, which have equal counts. With more cells, the rows of a cell are more alike,
# but each bin of a cell holds fewer.
NUM_CELLS = 60
# The precision of the difference of log θ between neighbouring bins. It keeps bins without events
# like their neighbours. With 4, a factor of e is two standard deviations.
SMOOTHNESS = 4.0
TREES = {"learning_rate": 0.1, "num_leaves": 15, "min_data_in_leaf": 100, "feature_fraction": 0.5}
TREES |= {"cat_smooth": 100, "cat_l2": 100, "num_threads": 1, "seed": 0, "verbose": -1}
TREES |= {"force_row_wise": True}
NUM_TREES = 80


def learn(rows: Dataset, encoder: Encoder, bins: Bins) -> tuple[F64, F64]:
    """Return log θ of each bin `[B]`, which is 0 at the first, and its standard error `[B]`.

    Viewers are the clusters of the error, so the rows must have two viewers or more.
    """
    place, label = bins.of[rows.position], rows.label.astype(np.float64)
    viewer = np.unique(rows.viewer, return_inverse=True)[1]
    chance, cell = _from_others(rows, encoder, viewer)

    def table(values: F64) -> F64:
        """Sum the values `[N]` of each cell and bin, `[C, B]`."""
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
    # If nothing moves the rows of a cell, only the prior determines θ, and the data show no error.
    variance = np.maximum(((of_viewer @ covariance) ** 2).sum(axis=0), np.diag(covariance))
    return np.append(0.0, beta), np.append(0.0, np.sqrt(variance))


def _from_others(rows: Dataset, encoder: Encoder, viewer: I64) -> tuple[F64, I64]:
    """Return E[label | x] `[N]` and each row's cell `[N]`, learned from the other half."""
    half = halves(viewer)
    depth = by_others(rows, encoder, half, "regression", np.log1p(rows.position))
    cell = NUM_CELLS * half
    for fold in (0, 1):
        cell[half == fold] += quantiles(depth[half == fold], NUM_CELLS)
    return by_others(rows, encoder, half, "binary", rows.label), cell


def halves(viewer: I64) -> I64:
    """Return for each row `[N]` to which half of the viewers it belongs, 0 or 1."""
    return np.random.default_rng(0).permutation(int(viewer.max()) + 1)[viewer] % 2


def by_others(
    rows: Dataset,
    encoder: Encoder,
    half: I64,
    objective: str,
    target: NDArray[Any],
    known: Flags | bool = True,
) -> F64:
    """Predict a target `[N]` with LightGBM, trained on the `known` rows of the other half."""
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
    """Return for each value `[N]` in which of `num` parts of equal count it lies."""
    return np.searchsorted(np.quantile(values, np.linspace(0, 1, num + 1)[1:-1]), values)
