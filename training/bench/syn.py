"""Train on the TabNet paper's synthetic sets and compare the AUC with the paper's.

Six sets of 11 standard normal columns, X1 to X11, and a label with
P(Y = 1 | X) = 1 / (1 + exp(z(X))). The exponents z are those of Chen et al. 2018 ("Learning to
Explain") as changed by Yoon et al. 2019 (INVASE), whose code, not text, gives Syn3 (see
`exponent`). The AUCs are those of Arik & Pfister 2021 (TabNet), table 1.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from serve.features.matrix import Matrix
from serve.features.slots import F32, F64
from serve.model.encoder import Encoder, NumericColumn
from serve.operate.host.machine import describe_machine
from training.fit.loop import FitConfig, run
from training.network.model import Model
from training.network.network import Inputs, NetworkConfig, inputs

NUM_COLUMNS = 11
# Test AUC of TabNet in its paper, by set.
PAPER = {"syn1": 0.682, "syn2": 0.892, "syn3": 0.897, "syn4": 0.776, "syn5": 0.789, "syn6": 0.878}
# A set holds if its test AUC is at most this far below the paper's, whose own standard deviations
# are up to 0.017.
SLACK = 0.01
# Rows to learn from, as in the papers; a tenth of them validates.
NUM_TRAIN = 10_000
# Ten times the papers' rows: the sampling error of the test AUC is then below 0.002.
NUM_TEST = 100_000
ENCODER = Encoder(numeric=tuple(NumericColumn(f"X{i + 1}") for i in range(NUM_COLUMNS)))


def _config(n_steps: int, gamma: float, lambda_sparse: float) -> FitConfig:
    """Return the paper's network and learning rate, with 720 steps of 500 rows.

    The paper takes 4,000 steps of 3,000. The weight decay matters most on 10,000 rows: with 1e-5
    Syn4 reached 0.662, Syn2 0.877 and Syn6 0.834; with 1.0 0.803, 0.900 and 0.884 (the same rows,
    all else equal).
    """
    network = NetworkConfig(
        width=16,
        n_steps=n_steps,
        gamma=gamma,
        mask_type="sparsemax",
        n_independent=2,
        n_shared=2,
        virtual_batch_size=100,
        # The paper's 0.7 in torch's convention, 1 - momentum.
        momentum=0.3,
        lambda_sparse=lambda_sparse,
    )
    return FitConfig(network, epochs=40, patience=40, batch_size=500, learning_rate=0.02, weight_decay=1.0)


CONFIGS = {
    "syn1": _config(4, 2.0, 0.02),
    "syn2": _config(4, 2.0, 0.01),
    "syn3": _config(4, 2.0, 0.01),
    "syn4": _config(5, 1.5, 0.005),
    "syn5": _config(5, 1.5, 0.005),
    "syn6": _config(5, 1.5, 0.005),
}


@dataclass(frozen=True)
class Drawn:
    """Rows of a set, with the true P(Y = 1 | X) of each: no score has a higher expected AUC."""

    # [R, 11]
    x: F64
    # [R]
    probability: F64
    # [R]
    label: F32


def exponent(name: str, x: F64) -> F64:
    """Return z [R] of a set's P(Y = 1 | X) = 1 / (1 + exp(z)), for x [R, 11].

    Syn3 follows INVASE's code. INVASE's text has -10·sin(2·X7) + 2·|X8| + X9 + exp(-X10), and L2X's
    code -100·sin(0.2·X7) + ...: with either the true probability has an AUC above 0.99. With the
    form here it has 0.906, and the published AUCs end at 0.902.
    """
    first = x[:, 0] * x[:, 1]
    second = (x[:, 2:6] ** 2).sum(axis=1) - 4.0
    third = -10.0 * np.sin(0.2 * x[:, 6]) + np.abs(x[:, 7]) + x[:, 8] + np.exp(-x[:, 9]) - 2.4
    pairs = {
        "syn1": (first, first),
        "syn2": (second, second),
        "syn3": (third, third),
        "syn4": (first, second),
        "syn5": (first, third),
        "syn6": (second, third),
    }
    below, above = pairs[name]
    z: F64 = np.where(x[:, 10] < 0.0, below, above)
    return z


def draw(name: str, num_rows: int, rng: np.random.Generator) -> Drawn:
    """Draw new rows of a set."""
    x = rng.standard_normal((num_rows, NUM_COLUMNS))
    # Compute the logistic function by tanh, because exp(-X10) may be large and its exp overflow.
    probability = 0.5 - 0.5 * np.tanh(0.5 * exponent(name, x))
    return Drawn(x, probability, (rng.random(num_rows) < probability).astype(np.float32))


def bench_syn(
    *,
    sets: Sequence[str] = tuple(PAPER),
    seeds: Sequence[int] = (0,),
    num_train: int = NUM_TRAIN,
    num_test: int = NUM_TEST,
    epochs: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train on each of `sets`, once with each of `seeds` (rows and weights), on one thread.

    Returns:
        `machine`, `seconds`, `held` (every set is at most 0.01 below the paper) and `sets`: for
        each `auc` (mean over seeds), `aucs` (by seed), `paper`, `difference` (from the paper),
        `bayes` (AUC of the true probability on the same rows), `seconds` and `held`.
    """
    begun = time.perf_counter()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in sets:
        started = time.perf_counter()
        config = CONFIGS[name] if epochs is None else replace(CONFIGS[name], epochs=epochs)
        aucs, bayes = [], []
        for seed in seeds:
            progress(f"bench syn: {name}, seed {seed}")
            rng = np.random.default_rng([seed, list(PAPER).index(name)])
            train, test = draw(name, num_train, rng), draw(name, num_test, rng)
            score = train_scorer(train, replace(config, seed=seed))(test.x)
            aucs.append(float(roc_auc_score(test.label, score)))
            bayes.append(float(roc_auc_score(test.label, test.probability)))
        mean = statistics.fmean(aucs)
        results[name] = {
            "auc": mean,
            "aucs": aucs,
            "paper": PAPER[name],
            "difference": mean - PAPER[name],
            "bayes": statistics.fmean(bayes),
            "seconds": round(time.perf_counter() - started, 1),
            "held": mean >= PAPER[name] - SLACK,
        }
    return {
        "machine": describe_machine(),
        "seconds": round(time.perf_counter() - begun, 1),
        "held": all(result["held"] for result in results.values()),
        "sets": results,
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text: a line for each set, and the conclusion."""
    lines = ["set     test AUC   paper    difference   true probability   seconds"]
    lines += [
        f"{name:<6}{found['auc']:>9.4f}{found['paper']:>10.3f}{found['difference']:>+13.4f}"
        f"{found['bayes']:>16.4f}{found['seconds']:>14.1f}" + ("" if found["held"] else "   too low")
        for name, found in result["sets"].items()
    ]
    verdict = "holds: every set is" if result["held"] else "does not hold: not every set is"
    return "\n".join([*lines, f"{verdict} at most {SLACK} below the paper ({result['seconds']:.0f} s)"])


def train_scorer(rows: Drawn, config: FitConfig) -> Callable[[F64], F64]:
    """Train on all but the last tenth of `rows`, which validates; return the scorer.

    The scorer maps x [R, 11] to logit [R].
    """
    cut = len(rows.x) - len(rows.x) // 10
    train, valid = (_inputs(rows.x[part], rows.label[part]) for part in (slice(cut), slice(cut, None)))
    state = run(train, valid, ENCODER, config)
    model = Model.of(ENCODER, config.network, state.kept(config))
    return lambda x: model.logits(Matrix(x.astype(np.float32), np.zeros((len(x), 0), np.uint64)))


def _inputs(x: F64, label: F32) -> Inputs:
    encoded = ENCODER.encode(x.astype(np.float32), np.zeros((len(x), 0), np.uint64))
    return inputs(ENCODER, encoded, label, np.ones(len(x)))
