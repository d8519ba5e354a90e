"""The rival model: LightGBM, trained on the same rows and columns as the network."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit

from serve.features.matrix import Matrix
from serve.model.encoder import Encoder
from training.data.dataset import Dataset, evenly
from training.data.encoding import tree_columns
from training.evaluation.metrics import row_logloss
from training.evaluation.slates import F64
from training.examination.examination import Examination

# The algorithm is fixed, so that the same rows give the same trees; LightGBM would otherwise choose
# the faster one. It uses one thread, because OpenMP's threads wait for one another in a loop:
# beside other work, two threads take five times as long as one.
LIGHTGBM = {"num_threads": 1, "verbose": -1, "force_row_wise": True, "feature_pre_filter": False}
# The lowest, the first and the highest value of each setting that tuning tries, on a logarithmic
# scale. The first values give smooth models, because logs are small and noisy. Early stopping
# chooses the number of trees.
SPACE: dict[str, Any] = {
    "num_leaves": (4, 15, 64),
    "learning_rate": (0.03, 0.05, 0.15),
    "feature_fraction": (0.25, 0.5, 0.9),
    "min_data_in_leaf": (20, 100, 1_000),
    "lambda_l2": (0.01, 0.01, 100.0),
    "cat_smooth": (5.0, 100.0, 500.0),
    "cat_l2": (5.0, 100.0, 500.0),
}
# A try has at most 600 trees, and stops after 30 trees without a lower logloss.
STOP = {"num_iterations": 600, "early_stopping_round": 30}
# There are at most 20 tries. With more, the best one is rather a matter of chance: tuned by 30
# tries instead of 15, RankLens has AUC 0.800 instead of 0.801 on later rows. New tries begin within
# this share of a search's budget, or within this many seconds of `evaluate`.
MAX_TRIES, TUNING_SHARE, TUNING_S = 20, 0.1, 60.0
# The rival is the mean of up to three models that differ in their seeds. Together they are trained
# on at most this many rows, but there is always one.
NUM_SEEDS, SEED_ROWS = 3, 1_500_000
# Tuning uses at most this many rows.
MOST_ROWS = 300_000
# A cost is measured while this many candidates are scored at once, about those of eight requests.
NUM_ROWS = 440
NUM_RUNS, WARM_UPS = 25, 3
# Probabilities keep this distance from 0 and 1, where a logloss may be infinite.
TINY = 1e-6

# Predicts P(label | looked at) for R rows of a matrix: `[R]`, or `[R, O]` for several outcomes.
Rival = Callable[[Matrix], F64]


def tuned(encoder: Encoder, train: Dataset, examination: Examination, seconds: float) -> dict[str, Any]:
    """Return the settings of LightGBM with the lowest logloss on the newest eighth of the rows.

    Tries the first values of `SPACE`, and then those that Optuna's sampler (TPE) suggests, on at
    most `MOST_ROWS` rows. After `seconds`, no further try begins. The same number of tries gives
    the same settings.
    """
    import optuna

    begun_s = time.monotonic()
    rows = train.take(evenly(len(train), MOST_ROWS))
    cut = len(rows) * 7 // 8
    early = _inputs(encoder, rows.take(slice(cut)), examination)
    late = _inputs(encoder, rows.take(slice(cut, None)), examination, early)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(multivariate=True, seed=0))
    study.enqueue_trial({name: first for name, (_, first, _) in SPACE.items()})
    for number in range(MAX_TRIES):
        if number == 0 or time.monotonic() - begun_s < seconds:
            trial = study.ask()
            for name, (low, _, high) in SPACE.items():
                suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
                suggest(name, low, high, log=True)
            model = _boosted(early, trial.params | STOP, late)
            trial.set_user_attr("num_iterations", model.best_iteration)
            study.tell(trial, *model.best_score["valid_0"].values())
    return study.best_params | study.best_trial.user_attrs


def lightgbm(encoder: Encoder, train: Dataset, examination: Examination, **settings: Any) -> Rival:
    """Train gradient-boosted trees (Ke et al. 2017) with native categories, averaged over seeds.

    `settings` are those of `tuned`. With more rows, seeds make less of a difference, so beyond
    `SEED_ROWS` rows there is only one.
    """
    rows = _inputs(encoder, train, examination)
    seeds = range(min(NUM_SEEDS, max(1, SEED_ROWS // len(train))))
    models, start = [_boosted(rows, settings | {"seed": seed}) for seed in seeds], rows.init_score[0]

    def score(matrix: Matrix) -> F64:
        columns, _ = tree_columns(encoder, matrix)
        raw = [model.predict(columns, raw_score=True, num_threads=1) for model in models]
        return np.asarray(expit(np.add(raw, start)).mean(axis=0), np.float64)

    return score


def trees(
    encoder: Encoder, data: Dataset, examinations: Sequence[Examination], settings: Mapping[str, Any]
) -> Rival:
    """Train LightGBM on each outcome, and return a function that predicts `[R, O]` for a matrix.

    `settings` are for the primary outcome. A further outcome may be rare, so it has the settings
    that tuning tries first, and its own number of trees. With the settings of joins, the logloss of
    hides was 7 % higher.
    """
    rivals = []
    for k, one in enumerate(examinations):
        rows = data.of(k)
        chosen = tuned(encoder, rows, one, 0.0) if k else settings
        rivals.append(lightgbm(encoder, rows, one, **chosen))
    return lambda matrix: np.stack([rival(matrix) for rival in rivals], axis=1)


def _inputs(encoder: Encoder, rows: Dataset, examination: Examination, like: Any = None) -> Any:
    """Return rows as a LightGBM data set, with the bins and the start of `like`, if it is given.

    A row's weight holds the examination of its position for the objective here. LightGBM's own
    objective is used only if all weights are 1, and drops them.
    """
    import lightgbm as trees

    inputs, categorical = tree_columns(encoder, rows.matrix)
    theta = examination.at(rows.position)
    label = np.ascontiguousarray(rows.label)
    data = trees.Dataset(inputs, label, like, theta, params=LIGHTGBM, categorical_feature=categorical)
    # Start from the logit of the base rate, which is P(label | looked at) over all rows.
    start = like.init_score[0] if like else logit(np.clip(rows.label.mean() / theta.mean(), TINY, 0.9))
    return data.set_init_score(np.full(len(rows), start)).construct()


def _boosted(rows: Any, settings: dict[str, Any], late: Any = None) -> Any:
    """Train a model. With rows `late`, their logloss stops it early."""
    import lightgbm as trees

    is_plain = rows.get_weight() is None
    # Labels between 0 and 1 need the cross-entropy, which takes longer.
    plain = "binary" if np.isin(rows.get_label(), (0, 1)).all() else "cross_entropy"
    settings = LIGHTGBM | settings | {"objective": plain if is_plain else _derivatives}
    return trees.train(settings, rows, valid_sets=late and [late], feval=None if is_plain else _logloss)


def _derivatives(raw: F64, rows: Any) -> tuple[F64, F64]:
    """Return the gradient and the Fisher information `[N]` of the logloss by the logit `[N]`.

    With p = sigmoid(logit) and q = θp, they are (1 − p) ((1 − y) q / (1 − q) − y) and
    (1 − p)² q / (1 − q).
    """
    chance, shown, label = expit(raw), _shown(raw, rows), rows.get_label()
    odds = shown / (1 - shown)
    return (1 - chance) * ((1 - label) * odds - label), (1 - chance) ** 2 * odds


def _logloss(raw: F64, rows: Any) -> tuple[str, float, bool]:
    """Return the logloss of the labels as shown, in the form of a LightGBM metric."""
    return "logloss", float(row_logloss(rows.get_label(), _shown(raw, rows)).mean()), False


def _shown(raw: F64, rows: Any) -> F64:
    """Return P(label) as shown `[N]` from the logits `[N]` of P(label | looked at)."""
    # LightGBM drops weights that are all 1.
    theta = 1.0 if rows.get_weight() is None else rows.get_weight()
    return np.asarray(np.clip(theta * expit(raw), TINY, 1 - TINY), np.float64)


def us_per_candidate(rival: Rival, matrix: Matrix) -> float:
    """Measure how many µs per candidate a rival takes from the matrix to the probability.

    The result is the lower quartile of several runs, because other work on the machine only ever
    adds time.
    """
    rows = matrix.rows(np.resize(np.arange(len(matrix.numeric)), NUM_ROWS))
    taken = timeit.repeat(lambda: rival(rows), number=1, repeat=WARM_UPS + NUM_RUNS)
    return float(np.quantile(taken[WARM_UPS:], 0.25) * 1e6 / NUM_ROWS)
