"""Measure the speed of the training loop on this machine, on made-up rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from serve.model.encoder import Encoder, NumericColumn, SingleColumn
from serve.operate.host.machine import describe_machine
from training.fit.loop import FitConfig, run
from training.network.network import Inputs, NetworkConfig, inputs

CONFIG = FitConfig(
    NetworkConfig(width=16, n_steps=3, n_independent=2, n_shared=2, virtual_batch_size=256),
    epochs=10,
    patience=10,
    batch_size=2048,
    category_dropout=0.0,
    restore_best=False,
)
NUM_NUMERIC, NUM_CATEGORIES = 32, 8
ENCODER = Encoder(
    tuple(NumericColumn(f"n{i}") for i in range(NUM_NUMERIC)),
    tuple(SingleColumn(f"c{k}", tuple(f"v{j}" for j in range(4 + 4 * k)), 3) for k in range(NUM_CATEGORIES)),
)


def bench_fit(
    *,
    rows: int = 50_000,
    valid_rows: int = 20_000,
    config: FitConfig = CONFIG,
    rounds: int = 3,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure the rows/s of a training on one thread, and on all threads.

    The two alternate, and medians count. Each round has its own seed: by seed alone the logloss
    spreads by about 0.01.

    Returns:
        `machine`, `seconds`, `rows`, `columns`, `epochs`, and by number of threads `rows_per_s` and
        `valid_logloss`.
    """
    begun = time.perf_counter()
    all_threads = torch.get_num_threads()
    train, valid = made_up(rows, 1), made_up(valid_rows, 2)
    num_rows = rows // config.batch_size * config.batch_size * config.epochs
    speeds: dict[str, list[float]] = {str(num): [] for num in sorted({1, all_threads})}
    logloss: dict[str, list[float]] = {num: [] for num in speeds}
    try:
        for number in range(rounds):
            for num in speeds:
                progress(f"bench fit: round {number + 1} of {rounds}, threads {num}")
                torch.set_num_threads(int(num))
                started = time.perf_counter()
                state = run(train, valid, ENCODER, replace(config, seed=number))
                speeds[num].append(num_rows / (time.perf_counter() - started))
                logloss[num].append(state.history[-1]["valid_logloss"])
    finally:
        torch.set_num_threads(all_threads)
    return {
        "machine": describe_machine(),
        "seconds": round(time.perf_counter() - begun, 1),
        "rows": rows,
        "columns": NUM_NUMERIC + NUM_CATEGORIES,
        "epochs": config.epochs,
        "rows_per_s": {num: statistics.median(found) for num, found in speeds.items()},
        "valid_logloss": {num: statistics.median(found) for num, found in logloss.items()},
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text, a line for each number of threads."""
    lines = [f"{result['rows']:,} rows of {result['columns']} columns, {result['epochs']} epochs"]
    for num, speed in result["rows_per_s"].items():
        found = result["valid_logloss"][num]
        lines.append(f"  threads {num:<4}{speed:>10,.0f} rows/s   valid logloss {found:.4f}")
    return "\n".join(lines)


def made_up(num_rows: int, seed: int) -> Inputs:
    """Draw rows with non-linear effects: folds, and a number's effect that depends on a category.

    A few epochs learn them.
    """
    rng = np.random.default_rng(seed)
    numeric = rng.standard_normal((num_rows, NUM_NUMERIC)).astype(np.float32)
    index = np.stack([rng.integers(2, c, num_rows) for c in ENCODER.cardinalities], axis=1)
    logit = 2.0 * np.abs(numeric[:, 0]) + numeric[:, 1] - np.maximum(numeric[:, 2], 0.0) - 2.0
    logit += 1.5 * (index[:, 0] % 2) + numeric[:, 3] * (index[:, 1] % 3 - 1)
    label = (rng.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    return inputs(ENCODER, (numeric, np.zeros((num_rows, 0), np.float32), index), label, np.ones(num_rows))
