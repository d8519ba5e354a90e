"""Measure training speed: pytorch_tabnet's classifier, a plain loop, and our loop."""

from __future__ import annotations

import itertools
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from serve.model.encoder import Encoder, NumericColumn, SingleColumn
from serve.operate.host.machine import describe_machine
from training.bench.reference import classifier, module_of
from training.fit.loop import FitConfig, learning_rate, run
from training.network.network import EVALUATION_BATCH, Inputs, Network, NetworkConfig, inputs

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
    """Measure the rows/s of several ways to train one network on the same rows.

    The ways alternate, and medians count. Each round has its own seed: by seed alone the logloss of
    one way spreads by about 0.01.


    `fit` is `TabNetClassifier.fit`, `plain` a loop in memory around pytorch_tabnet's network, and
    `ours` this project's training loop, each on one thread and on all, with the same batches,
    optimiser and rates. All validate after each epoch, on the same rows and by logloss; `fit` does
    not compute its importances.

    Returns:
        `machine`, `seconds`, `rows`, `columns`, `epochs`, `rows_per_s` and `valid_logloss` by name,
        and `ratio_vs_fit`: the faster of ours over the faster of `fit`.
    """
    begun = time.perf_counter()
    threads = torch.get_num_threads()
    train, valid = _made(rows, 1), _made(valid_rows, 2)
    steps = rows // config.batch_size * config.epochs
    ways: dict[str, Callable[[FitConfig], float]] = {
        "fit": lambda seeded: _classifier(train, valid, seeded),
        "plain": lambda seeded: _plain(train, valid, seeded),
        "ours": lambda seeded: run(train, valid, ENCODER, seeded).history[-1]["valid_logloss"],
    }
    speeds, logloss = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    try:
        for number, way, num in itertools.product(range(rounds), ways, sorted({1, threads})):
            name = way if num == 1 else f"{way}, {num} threads"
            progress(f"bench fit: round {number + 1} of {rounds}, {name}")
            torch.set_num_threads(num)
            taken_from = time.perf_counter()
            logloss[name].append(ways[way](replace(config, seed=number)))
            speeds[name].append(steps * config.batch_size / (time.perf_counter() - taken_from))
    finally:
        torch.set_num_threads(threads)
    speed = {name: statistics.median(found) for name, found in speeds.items()}
    return {
        "machine": describe_machine(),
        "seconds": round(time.perf_counter() - begun, 1),
        "rows": rows,
        "columns": NUM_NUMERIC + NUM_CATEGORIES,
        "epochs": config.epochs,
        "rows_per_s": speed,
        "ratio_vs_fit": _best(speed, "ours") / _best(speed, "fit"),
        "valid_logloss": {name: statistics.median(found) for name, found in logloss.items()},
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text, a line for each way."""
    lines = [f"{result['rows']:,} rows of {result['columns']} columns, {result['epochs']} epochs"]
    for name, speed in result["rows_per_s"].items():
        found = result["valid_logloss"][name]
        lines.append(f"  {name:<20}{speed:>10,.0f} rows/s   valid logloss {found:.4f}")
    times = f"{result['ratio_vs_fit']:.1f} times as fast as fit"
    return "\n".join([*lines, f"  ours is {times}, each at its better number of threads"])


def _best(speed: Mapping[str, float], start: str) -> float:
    return max(value for name, value in speed.items() if name.startswith(start))


def _made(num_rows: int, seed: int) -> Inputs:
    """Draw rows with non-linear effects: folds, and a number's effect that depends on a category.

    A few epochs learn them, so every way has converged when it is compared.
    """
    rng = np.random.default_rng(seed)
    numeric = rng.standard_normal((num_rows, NUM_NUMERIC)).astype(np.float32)
    index = np.stack([rng.integers(2, c, num_rows) for c in ENCODER.cardinalities], axis=1)
    logit = 2.0 * np.abs(numeric[:, 0]) + numeric[:, 1] - np.maximum(numeric[:, 2], 0.0) - 2.0
    logit += 1.5 * (index[:, 0] % 2) + numeric[:, 3] * (index[:, 1] % 3 - 1)
    label = (rng.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    return inputs(ENCODER, (numeric, np.zeros((num_rows, 0), np.float32), index), label, np.ones(num_rows))


def _plain(train: Inputs, valid: Inputs, config: FitConfig) -> float:
    """Train pytorch_tabnet's own module as our loop does; return the validation logloss."""
    torch.manual_seed(config.seed)
    network = module_of(Network(ENCODER, config.network))
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, **_adamw(config))
    size = config.batch_size - config.batch_size % config.network.virtual_batch_size
    num_steps, step, logloss = len(train) // size * config.epochs, 0, 0.0
    for epoch in range(1, config.epochs + 1):
        network.train()
        for rows in train.batches(size, slice(None), config.seed * 1_000_003 + epoch):
            optimiser.param_groups[0]["lr"] = learning_rate(step, num_steps, config)
            logit, negative_entropy = network(rows.x)
            loss = binary_cross_entropy_with_logits(logit[:, 0], rows.label)
            optimiser.zero_grad()
            (loss - config.network.lambda_sparse * negative_entropy).backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            optimiser.step()
            step += 1
        network.eval()
        logloss = _logloss(lambda x: network(x)[0][:, 0], valid)
    return logloss


def _adamw(config: FitConfig) -> dict[str, Any]:
    return {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}


def _classifier(train: Inputs, valid: Inputs, config: FitConfig) -> float:
    """Train a `TabNetClassifier` with the same settings; return the validation logloss."""
    num_steps = len(train) // config.batch_size * config.epochs
    fitted = classifier(
        ENCODER,
        config.network,
        lambda_sparse=config.network.lambda_sparse,
        momentum=config.network.momentum,
        clip_value=config.clip_norm,
        seed=config.seed,
        optimizer_fn=torch.optim.AdamW,
        optimizer_params=_adamw(config),
        scheduler_fn=torch.optim.lr_scheduler.LambdaLR,
        scheduler_params={
            "is_batch_level": True,
            "lr_lambda": lambda step: learning_rate(step, num_steps, config) / config.learning_rate,
        },
    )
    with warnings.catch_warnings():
        # Ignore warnings of how it steps the schedule.
        warnings.simplefilter("ignore")
        fitted.fit(
            train.x.numpy(),
            train.label.numpy().astype(np.int64),
            eval_set=[(valid.x.numpy(), valid.label.numpy().astype(np.int64))],
            eval_metric=["logloss"],
            max_epochs=config.epochs,
            patience=0,
            batch_size=config.batch_size,
            virtual_batch_size=config.network.virtual_batch_size,
            compute_importance=False,
        )
    fitted.network.eval()
    return _logloss(lambda x: torch.diff(fitted.network(x)[0])[:, 0], valid)


@torch.no_grad()
def _logloss(logit: Callable[[Tensor], Tensor], valid: Inputs) -> float:
    found = torch.cat([logit(part) for part in torch.split(valid.x, EVALUATION_BATCH)])
    return binary_cross_entropy_with_logits(found.double(), valid.label.double()).item()
