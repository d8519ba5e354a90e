"""Rival models: LightGBM and logistic regression on the same rows and columns as the network."""

from __future__ import annotations

import timeit
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from serve.features.matrix import Matrix
from serve.model.encoder import CLIP, Encoder
from training.data.dataset import Dataset

LIGHTGBM = {"n_estimators": 120, "num_leaves": 31, "verbose": -1, "n_jobs": 2, "random_state": 0}
# Rows for logistic regression: its few dozen weights do not improve with more.
MOST_ROWS = 300_000
# Candidates to score at once where a cost is measured: about those of eight requests.
NUM_ROWS = 440
NUM_RUNS = 25
WARM_UPS = 3

# P(label) `[R]` of the rows of a matrix.
Rival = Callable[[Matrix], NDArray[np.float64]]


def lightgbm(encoder: Encoder, train: Dataset) -> Rival:
    """Train gradient-boosted trees (Ke et al. 2017): 120 of 31 leaves, with native categories."""
    from lightgbm import LGBMClassifier

    def columns(matrix: Matrix) -> NDArray[np.float32]:
        numeric, hot, index = encoder.encode(matrix.numeric, matrix.category)
        return np.concatenate([numeric, hot, index.astype(np.float32)], axis=1)

    inputs = columns(train.matrix)
    categorical = list(range(inputs.shape[1] - len(encoder.single), inputs.shape[1]))
    model = LGBMClassifier(**LIGHTGBM)
    model.fit(inputs, train.label, categorical_feature=categorical)
    return lambda matrix: np.asarray(model.predict_proba(columns(matrix), num_threads=1)[:, 1], np.float64)


def logistic(encoder: Encoder, train: Dataset) -> Rival:
    """Train logistic regression (L2) on standardised numbers and one-hot categories."""
    from sklearn.linear_model import LogisticRegression

    mean = np.array([c.mean for c in encoder.numeric])
    std = np.array([c.std for c in encoder.numeric])
    logged = np.array([c.transform == "log1p" for c in encoder.numeric], bool)

    def columns(matrix: Matrix) -> NDArray[np.float32]:
        numeric, hot, index = encoder.encode(matrix.numeric, matrix.category)
        value = np.where(logged, np.sign(numeric) * np.log1p(np.abs(numeric)), numeric)
        value = np.clip((value - mean) / std, -CLIP, CLIP)
        missing = np.isnan(value)
        parts = [np.where(missing, 0.0, value), missing[:, encoder.indicators], hot]
        parts += [np.eye(size)[index[:, k]] for k, size in enumerate(encoder.cardinalities) if size <= 256]
        return np.concatenate(parts, axis=1).astype(np.float32)

    rows = np.arange(len(train))
    if len(rows) > MOST_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, MOST_ROWS).astype(np.int64)]
    model = LogisticRegression(max_iter=300)
    with warnings.catch_warnings():
        # Ignore the warning that the last digit has not converged.
        warnings.simplefilter("ignore")
        model.fit(columns(train.matrix.rows(rows)), train.label[rows])
    return lambda matrix: np.asarray(model.predict_proba(columns(matrix))[:, 1], np.float64)


RIVALS: dict[str, Callable[[Encoder, Dataset], Rival]] = {"lightgbm": lightgbm, "logistic": logistic}


def us_per_candidate(rival: Rival, matrix: Matrix) -> float:
    """Measure the µs for each candidate that a rival takes from the matrix to the probability.

    Uses the lower quartile of the runs, because other work of the machine only adds time.
    """
    at = np.resize(np.arange(len(matrix.numeric)), NUM_ROWS)
    rows = matrix.rows(at)
    taken = timeit.repeat(lambda: rival(rows), number=1, repeat=WARM_UPS + NUM_RUNS)
    return float(np.quantile(taken[WARM_UPS:], 0.25) * 1e6 / NUM_ROWS)
