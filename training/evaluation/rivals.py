"""The rival model: LightGBM on the same rows and columns as the network."""

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

# Fix the algorithm, which speed would choose, to repeat the trees. Threads of OpenMP wait for one
# another in a loop: beside other work, two take five times as long as one.
LIGHTGBM = {"num_threads": 1, "verbose": -1, "force_row_wise": True, "feature_pre_filter": False}
# Lowest, first and highest value of each setting that tuning tries, on a logarithmic scale. The
# first are smooth, because logs are small and noisy. Early stopping chooses the trees.
SPACE: dict[str, Any] = {
    "num_leaves": (4, 15, 64),
    "learning_rate": (0.03, 0.05, 0.15),
    "feature_fraction": (0.25, 0.5, 0.9),
    "min_data_in_leaf": (20, 100, 1_000),
    "lambda_l2": (0.01, 0.01, 100.0),
    "cat_smooth": (5.0, 100.0, 500.0),
    "cat_l2": (5.0, 100.0, 500.0),
}
# Bounds of a try: its trees, and those without a better logloss before it stops.
STOP = {"num_iterations": 600, "early_stopping_round": 30}
# The best of more tries is more a matter of chance: RankLens, tuned by 30 tries instead of 15, has
# AUC 0.800 instead of 0.801 on later rows. Share of a search's budget, and seconds of `evaluate`,
# in which a try may begin.
MAX_TRIES, TUNING_SHARE, TUNING_S = 20, 0.1, 60.0
# The rival is the mean of models that differ in their seed: so many, or of so many rows in all.
NUM_SEEDS, SEED_ROWS = 3, 1_500_000
# Rows for tuning.
MOST_ROWS = 300_000
# Candidates to score at once where a cost is measured: about those of eight requests.
NUM_ROWS = 440
NUM_RUNS, WARM_UPS = 25, 3
# Bound of a probability, because the logloss of 0 and 1 may be infinite.
TINY = 1e-6

# P(label | looked at) `[R]` of the rows of a matrix, or `[R, O]` of several outcomes.
Rival = Callable[[Matrix], F64]


def tuned(encoder: Encoder, train: Dataset, examination: Examination, seconds: float) -> dict[str, Any]:
    """Return the settings of LightGBM with the lowest logloss on the newest eighth of the rows.

    Tries the first values of `SPACE`, then those that Optuna's sampler (TPE) suggests, on at most
    `MOST_ROWS` rows. Begins no try after so many seconds, except the first. The same number of
    tries finds the same settings.
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
    """Train gradient-boosted trees (Ke et al. 2017), native categories, and average over seeds.

    `settings` are those of `tuned`. Seeds differ less with more rows, so there is only one beyond
    `SEED_ROWS`.
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
    """Train LightGBM on each outcome, and return what predicts them for a matrix, `[R, O]`.

    `settings` are the primary outcome's. A further one, which may be rare, has the first ones that
    tuning tries, and its own number of trees: with those of joins, hides had 7 % more logloss.
    """
    rivals = []
    for k, one in enumerate(examinations):
        rows = data.of(k)
        chosen = tuned(encoder, rows, one, 0.0) if k else settings
        rivals.append(lightgbm(encoder, rows, one, **chosen))
    return lambda matrix: np.stack([rival(matrix) for rival in rivals], axis=1)


def _inputs(encoder: Encoder, rows: Dataset, examination: Examination, like: Any = None) -> Any:
    """Return rows as LightGBM trains on them, with the bins and the start of `like` if given.

    The weight of a row is the examination of its position, which LightGBM's own objective never
    sees: it drops weights that are all 1.
    """
    import lightgbm as trees

    inputs, categorical = tree_columns(encoder, rows.matrix)
    theta = examination.at(rows.position)
    label = np.ascontiguousarray(rows.label)
    data = trees.Dataset(inputs, label, like, theta, params=LIGHTGBM, categorical_feature=categorical)
    # Begin from the logit of the base rate, P(label | looked at) of all rows.
    start = like.init_score[0] if like else logit(np.clip(rows.label.mean() / theta.mean(), TINY, 0.9))
    return data.set_init_score(np.full(len(rows), start)).construct()


def _boosted(rows: Any, settings: dict[str, Any], late: Any = None) -> Any:
    """Train a model; early stopping looks at the logloss of `late`."""
    import lightgbm as trees

    is_plain = rows.get_weight() is None
    # Labels that are shares have a cross-entropy, which takes longer.
    plain = "binary" if np.isin(rows.get_label(), (0, 1)).all() else "cross_entropy"
    settings = LIGHTGBM | settings | {"objective": plain if is_plain else _derivatives}
    return trees.train(settings, rows, valid_sets=late and [late], feval=None if is_plain else _logloss)


def _derivatives(raw: F64, rows: Any) -> tuple[F64, F64]:
    """Return gradient and Fisher information [N] of the logloss by the logit [N].

    With p = sigmoid(logit) and q = θp they are (1 − p) ((1 − y) q / (1 − q) − y) and
    (1 − p)² q / (1 − q).
    """
    chance, shown, label = expit(raw), _shown(raw, rows), rows.get_label()
    odds = shown / (1 - shown)
    return (1 - chance) * ((1 - label) * odds - label), (1 - chance) ** 2 * odds


def _logloss(raw: F64, rows: Any) -> tuple[str, float, bool]:
    """Return the logloss of the labels as shown, as LightGBM takes a metric."""
    return "logloss", float(row_logloss(rows.get_label(), _shown(raw, rows)).mean()), False


def _shown(raw: F64, rows: Any) -> F64:
    """Return P(label) of rows as shown [N] from the logits of P(label | looked at) [N]."""
    # A set whose weights are all 1 has none.
    theta = 1.0 if rows.get_weight() is None else rows.get_weight()
    return np.asarray(np.clip(theta * expit(raw), TINY, 1 - TINY), np.float64)


def us_per_candidate(rival: Rival, matrix: Matrix) -> float:
    """Measure the µs for each candidate that a rival takes from the matrix to the probability.

    Uses the lower quartile of the runs, because other work of the machine only adds time.
    """
    rows = matrix.rows(np.resize(np.arange(len(matrix.numeric)), NUM_ROWS))
    taken = timeit.repeat(lambda: rival(rows), number=1, repeat=WARM_UPS + NUM_RUNS)
    return float(np.quantile(taken[WARM_UPS:], 0.25) * 1e6 / NUM_ROWS)
