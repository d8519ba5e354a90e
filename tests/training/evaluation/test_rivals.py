from __future__ import annotations

import io
from contextlib import redirect_stderr
from dataclasses import replace
from types import SimpleNamespace

import lightgbm as trees
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from serve.features.matrix import Columns, Matrix
from serve.features.surface import read_surface
from serve.model.encoder import Encoder, NumericColumn, SingleColumn, entry_hash
from tests.support.small_surface import TOML
from training.data.dataset import Dataset
from training.evaluation.rivals import SPACE, STOP, TUNING_SHARE, _logloss, lightgbm, tuned
from training.evaluation.rivals import trees as boosted
from training.examination.examination import Examination
from training.network.network import NetworkConfig
from training.search.cost import us_per_candidate
from training.search.leaderboard import Leaderboard, compete

TOPICS = ("jazz", "news", "chess")
ENCODER = Encoder(
    (NumericColumn("audience", "log1p", 2.0, 1.0, indicator=True), NumericColumn("age")),
    (SingleColumn("topic", TOPICS, 2),),
)
# Each position is looked at as much as the first.
LOOKED_AT = Examination()


def dataset(num_rows: int, seed: int) -> Dataset:
    """Return rows whose label depends on a number and on a topic."""
    rng = np.random.default_rng(seed)
    numeric = rng.gamma(2.0, 4.0, (num_rows, 2)).astype(np.float32)
    numeric[rng.random(num_rows) < 0.1, 0] = np.nan
    topic = rng.integers(0, 3, num_rows)
    category = np.array([entry_hash(t) for t in TOPICS], np.uint64)[topic][:, None]
    logit = np.nan_to_num(np.log1p(numeric[:, 0]), nan=1.0) - 3.0 + 2.0 * (topic == 0)
    label = (rng.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    zeros = np.zeros(num_rows, np.int64)
    return Dataset(
        columns=Columns(("audience", "age"), ("topic",), ()),
        matrix=Matrix(numeric, category),
        outcomes=(label)[:, None],
        slate=np.arange(num_rows) // 8,
        viewer=zeros,
        shown=zeros,
        ts_ms=np.arange(num_rows),
        popular=np.nan_to_num(numeric[:, 0]),
        position=np.arange(num_rows) % 8,
        viewer_seen=zeros,
        candidate_seen=zeros,
        request_ids=[],
        candidate_ids=[],
    )


@pytest.fixture(scope="module")
def said() -> io.StringIO:
    return io.StringIO()


def task(train) -> SimpleNamespace:
    """Return what rivals need of a search's task."""
    shared = {"encoder": ENCODER, "examinations": [Examination()], "weights": [1.0]}
    shared["schema"] = SimpleNamespace(surface=read_surface(TOML, "tiny.toml"))
    return SimpleNamespace(parts={"training": train}, valid=dataset(2_000, 2), **shared)


@pytest.fixture(scope="module")
def board(tmp_path_factory, said) -> Leaderboard:
    board = Leaderboard(tmp_path_factory.mktemp("rivals") / "leaderboard.jsonl")
    with redirect_stderr(said):
        compete(board, task(dataset(6_000, 1)), budget_s=0.0)
    return board


def test_the_rival_learns_from_numbers_and_categories(board):
    assert {entry.kind for entry in board.entries} == {"lightgbm", "popular"}
    popular, rival = board.of("popular"), board.of("lightgbm")
    assert rival.valid_logloss < popular.valid_logloss - 0.01
    assert rival.valid_auc > popular.valid_auc + 0.02
    assert rival.us_per_candidate > 0


def test_rivals_that_are_on_the_leaderboard_are_not_trained_again(board):
    before = list(board.entries)
    compete(board, task(dataset(0, 1)), budget_s=0.0)
    assert board.entries == before


def test_the_leaderboard_holds_the_settings_that_tuning_found(board, said):
    train, test = dataset(6_000, 1), dataset(500, 2)
    found = tuned(ENCODER, train, LOOKED_AT, 0.0)
    assert board.of("lightgbm").point == found
    assert f"LightGBM, {TUNING_SHARE:.0%} of the budget" in said.getvalue()
    again = lightgbm(ENCODER, train, LOOKED_AT, **found)(test.matrix)
    assert np.array_equal(again, lightgbm(ENCODER, train, LOOKED_AT, **found)(test.matrix))
    fewer = lightgbm(ENCODER, train, LOOKED_AT, **found | {"num_iterations": 1})
    assert not np.array_equal(again, fewer(test.matrix))


def test_tuning_begins_no_try_after_its_time_but_for_the_defaults():
    found = tuned(ENCODER, dataset(2_000, 1), LOOKED_AT, seconds=0.0)
    trees = found.pop("num_iterations")
    assert 1 <= trees < STOP["num_iterations"]
    assert found == {name: first for name, (_, first, _) in SPACE.items()}


def test_more_tries_find_better_settings_and_find_them_again(monkeypatch):
    monkeypatch.setattr("training.evaluation.rivals.MAX_TRIES", 6)
    train, test = dataset(2_000, 1), dataset(4_000, 2)
    first, found = (tuned(ENCODER, train, LOOKED_AT, seconds) for seconds in (0.0, 600.0))
    assert tuned(ENCODER, train, LOOKED_AT, 600.0) == found
    for name, (low, _, high) in SPACE.items():
        assert low <= found[name] <= high
    before, after = (
        log_loss(test.label, lightgbm(ENCODER, train, LOOKED_AT, **point)(test.matrix))
        for point in (first, found)
    )
    assert after < before


def test_the_rival_is_the_mean_of_as_many_seeds_as_the_rows_allow(monkeypatch):
    train, test = dataset(6_000, 1), dataset(2_000, 2)
    point = {"num_leaves": 15, "num_iterations": 30, "feature_fraction": 0.4}

    def score() -> np.ndarray:
        return lightgbm(ENCODER, train, LOOKED_AT, **point)(test.matrix)

    mean = score()
    monkeypatch.setattr("training.evaluation.rivals.SEED_ROWS", len(train) - 1)
    one = score()
    assert 0 < np.abs(mean - one).max() < 0.2
    monkeypatch.undo()
    monkeypatch.setattr("training.evaluation.rivals.NUM_SEEDS", 1)
    assert np.array_equal(score(), one)


def test_the_rival_answers_for_a_candidate_that_is_looked_at():
    """Tests that the position, which follows from a feature, is removed from the labels."""
    examination = Examination("learned", tuple(0.75 ** np.arange(8)), (0.0,) * 8, 100)
    data, truth = dataset(20_000, 1), dataset(20_000, 2)
    # Older viewers see a candidate lower, and like it as much as others.
    position = np.clip(data.matrix.numeric[:, 1] // 2, 0, 7).astype(np.int64)
    looked_at = np.random.default_rng(3).random(len(data)) < examination.at(position)
    shown = replace(data, position=position, outcomes=(data.label * looked_at)[:, None])
    point = {"num_leaves": 5, "num_iterations": 50, "learning_rate": 0.1}
    ours, biased = (
        lightgbm(ENCODER, shown, known, **point)(truth.matrix) for known in (examination, LOOKED_AT)
    )
    assert ours.mean() == pytest.approx(truth.label.mean(), abs=0.03)
    assert biased.mean() < truth.label.mean() - 0.2
    assert log_loss(truth.label, ours) < log_loss(truth.label, biased) - 0.15
    assert roc_auc_score(truth.label, ours) > roc_auc_score(truth.label, biased) + 0.05


@pytest.mark.parametrize("theta", [None, 0.2 ** np.arange(8.0)])
def test_tuning_measures_the_labels_as_shown(theta):
    label, raw = np.float64([1, 0] * 4), np.linspace(-2, 2, 8)
    rows = trees.Dataset(np.zeros((8, 1)), label, weight=theta, params={"verbose": -1}).construct()
    shown = (1.0 if theta is None else theta) / (1 + np.exp(-raw))
    name, found, is_higher_better = _logloss(raw, rows)
    assert (name, is_higher_better) == ("logloss", False)
    assert found == pytest.approx(log_loss(label, shown), rel=1e-4)


def test_a_rivals_scores_are_probabilities_whatever_the_numbers():
    train, test = dataset(2_000, 1), dataset(100, 2)
    test.matrix.numeric[0] = [np.float32(3e38), -np.float32(3e38)]
    chance = lightgbm(ENCODER, train, LOOKED_AT, num_iterations=20)(test.matrix)
    assert chance.shape == (100,)
    assert ((chance >= 0) & (chance <= 1)).all()


def test_the_cost_of_a_network_is_known_before_it_is_trained():
    assert us_per_candidate(ENCODER, NetworkConfig(width=8, n_steps=1), dataset(500, 1).matrix, 2) > 0


def test_a_further_outcome_has_its_own_number_of_trees():
    train, test = dataset(3_000, 1), dataset(500, 2)
    rare = train.label * (np.arange(len(train)) % 9 == 0)
    both = replace(train, outcomes=np.stack([train.label, rare], axis=1).astype(np.float32))
    many = {"num_iterations": 80, "seed": 1}
    found = boosted(ENCODER, both, [LOOKED_AT] * 2, many)(test.matrix)
    own = tuned(ENCODER, both.of(1), LOOKED_AT, 0.0)
    assert own["num_iterations"] < 80
    for k, chosen in enumerate((many, own)):
        want = lightgbm(ENCODER, both.of(k), LOOKED_AT, **chosen)(test.matrix)
        np.testing.assert_array_equal(found[:, k], want)
