"""Rows with non-linear effects, and settings that learn some of them in a few epochs."""

from __future__ import annotations

import numpy as np

from serve.model.encoder import Encoder, NumericColumn, SingleColumn
from training.fit.loop import FitConfig
from training.network.network import Inputs, NetworkConfig, inputs

CONFIG = FitConfig(
    NetworkConfig(width=16, n_steps=3, n_independent=2, n_shared=2, virtual_batch_size=256),
    epochs=10,
    batch_size=2048,
    category_dropout=0.0,
    restore_best=False,
)
NUM_NUMERIC, NUM_CATEGORIES = 32, 8
ENCODER = Encoder(
    tuple(NumericColumn(f"n{i}") for i in range(NUM_NUMERIC)),
    tuple(SingleColumn(f"c{k}", tuple(f"v{j}" for j in range(4 + 4 * k)), 3) for k in range(NUM_CATEGORIES)),
)


def made_up(num_rows: int, seed: int) -> Inputs:
    """Draw rows with non-linear effects, which a model can learn in a few epochs.

    For example, one number counts by its absolute value, and the effect of another one depends on
    a category.
    """
    rng = np.random.default_rng(seed)
    numeric = rng.standard_normal((num_rows, NUM_NUMERIC)).astype(np.float32)
    index = np.stack([rng.integers(2, c, num_rows) for c in ENCODER.cardinalities], axis=1)
    logit = 2.0 * np.abs(numeric[:, 0]) + numeric[:, 1] - np.maximum(numeric[:, 2], 0.0) - 2.0
    logit += 1.5 * (index[:, 0] % 2) + numeric[:, 3] * (index[:, 1] % 3 - 1)
    label = (rng.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    return inputs(
        ENCODER, (numeric, np.zeros((num_rows, 0), np.float32), index), label[:, None], np.ones((num_rows, 1))
    )
