"""Rival models: LightGBM and logistic regression on the same rows and columns as the network."""

from __future__ import annotations

import math
import time
import timeit
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.matrix import Matrix
from serve.model.encoder import Encoder
from training.data.dataset import Dataset, evenly
from training.network.network import Network, NetworkConfig

LIGHTGBM = {"objective": "binary", "learning_rate": 0.05, "num_threads": 2, "seed": 0, "verbose": -1}
# Smooth, because logs are small and noisy. Fix the algorithm, which speed would choose, to repeat
# the trees.
LIGHTGBM |= {"feature_fraction": 0.5, "min_data_in_leaf": 100, "cat_smooth": 100, "cat_l2": 100}
LIGHTGBM |= {"force_row_wise": True}
# Leaves of a tree that `tuned` tries, the likely ones first; early stopping chooses the trees.
LEAVES = (15, 31, 7, 63)
# Bound the trees, and those without a better logloss before tuning stops.
MAX_TREES, PATIENCE = 600, 30
# Rows for tuning, and for logistic regression: its few dozen weights do not improve with more.
MOST_ROWS = 300_000
# Candidates to score at once where a cost is measured: about those of eight requests.
NUM_ROWS = 440
NUM_RUNS = 25
WARM_UPS = 3

# P(label) `[R]` of the rows of a matrix.
Rival = Callable[[Matrix], NDArray[np.float64]]


def tuned(encoder: Encoder, train: Dataset, seconds: float = math.inf) -> dict[str, Any]:
    """Return the settings of LightGBM with the lowest logloss on the newest eighth of the rows.

    Tries `LEAVES` in order on at most `MOST_ROWS` rows, and begins none after so many seconds.
    """
    import lightgbm as trees

    begun_s = time.monotonic()
    rows = train.take(evenly(len(train), MOST_ROWS))
    cut = len(rows) * 7 // 8
    early, late = (_inputs(encoder, rows.take(part)) for part in (slice(cut), slice(cut, None)))
    late.set_reference(early)
    found: list[tuple[float, int, int]] = []
    for leaves in LEAVES:
        if not found or time.monotonic() - begun_s < seconds:
            settings = LIGHTGBM | {"num_leaves": leaves}
            stop = [trees.early_stopping(PATIENCE, verbose=False)]
            model = trees.train(settings, early, MAX_TREES, valid_sets=[late], callbacks=stop)
            logloss = model.best_score["valid_0"]["binary_logloss"]
            found.append((logloss, leaves, model.best_iteration))
    _, leaves, trees = min(found)
    return {"num_leaves": leaves, "num_iterations": trees}


def lightgbm(encoder: Encoder, train: Dataset, **settings: Any) -> Rival:
    """Train gradient-boosted trees (Ke et al. 2017), native categories; `tuned` by default."""
    import lightgbm as trees

    model = trees.train(LIGHTGBM | (settings or tuned(encoder, train)), _inputs(encoder, train))
    return lambda matrix: np.asarray(model.predict(_columns(encoder, matrix), num_threads=1), np.float64)


def _inputs(encoder: Encoder, rows: Dataset) -> Any:
    """Return rows as LightGBM trains on them."""
    import lightgbm as trees

    inputs = _columns(encoder, rows.matrix)
    categorical = list(range(inputs.shape[1] - len(encoder.single), inputs.shape[1]))
    return trees.Dataset(inputs, rows.label, categorical_feature=categorical)


def _columns(encoder: Encoder, matrix: Matrix) -> NDArray[np.float32]:
    numeric, hot, index = encoder.encode(matrix.numeric, matrix.category)
    return np.concatenate([numeric, hot, index.astype(np.float32)], axis=1)


def logistic(encoder: Encoder, train: Dataset) -> Rival:
    """Train logistic regression (L2) on the network's inputs, with one-hot categories."""
    from sklearn.linear_model import LogisticRegression

    network = Network(encoder, NetworkConfig())
    num_plain = len(encoder.input_names) - len(encoder.single)

    def columns(matrix: Matrix) -> NDArray[np.float32]:
        x = network.inputs_of(matrix).numpy()
        index = x[:, num_plain:].astype(np.int64)
        one_hot = [np.eye(n)[index[:, k]] for k, n in enumerate(encoder.cardinalities) if n <= 256]
        return np.concatenate([x[:, :num_plain], *one_hot], axis=1).astype(np.float32)

    rows = evenly(len(train), MOST_ROWS)
    model = LogisticRegression(max_iter=300)
    with warnings.catch_warnings():
        # Ignore the warning that the last digit has not converged.
        warnings.simplefilter("ignore")
        model.fit(columns(train.matrix.rows(rows)), train.label[rows])
    return lambda matrix: np.asarray(model.predict_proba(columns(matrix))[:, 1], np.float64)


# Each takes the encoder and the training rows; `lightgbm` also the settings of `tuned`.
RIVALS: dict[str, Callable[..., Rival]] = {"lightgbm": lightgbm, "logistic": logistic}


def us_per_candidate(rival: Rival, matrix: Matrix) -> float:
    """Measure the µs for each candidate that a rival takes from the matrix to the probability.

    Uses the lower quartile of the runs, because other work of the machine only adds time.
    """
    at = np.resize(np.arange(len(matrix.numeric)), NUM_ROWS)
    rows = matrix.rows(at)
    taken = timeit.repeat(lambda: rival(rows), number=1, repeat=WARM_UPS + NUM_RUNS)
    return float(np.quantile(taken[WARM_UPS:], 0.25) * 1e6 / NUM_ROWS)
