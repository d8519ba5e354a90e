from __future__ import annotations

import numpy as np
import pytest

from serve.features.matrix import Columns, Matrix
from serve.model.encoder import Encoder, NumericColumn, SingleColumn, entry_hash
from training.data.dataset import Dataset
from training.evaluation.rivals import LEAVES, MAX_TREES, RIVALS, lightgbm, tuned
from training.examination.examination import Examination
from training.network.network import NetworkConfig
from training.search.cost import us_per_candidate
from training.search.leaderboard import Leaderboard, compete

TOPICS = ("jazz", "news", "chess")
ENCODER = Encoder(
    (NumericColumn("audience", "log1p", 2.0, 1.0, indicator=True), NumericColumn("age")),
    (SingleColumn("topic", TOPICS, 2),),
)


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
        label=label,
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
        counts={},
    )


@pytest.fixture(scope="module")
def board(tmp_path_factory) -> Leaderboard:
    board = Leaderboard(tmp_path_factory.mktemp("rivals") / "leaderboard.jsonl")
    compete(
        board,
        ENCODER,
        dataset(6_000, 1),
        dataset(2_000, 2),
        Examination(),
        lambda text: None,
        tuning_s=60.0,
    )
    return board


def test_each_rival_learns_from_numbers_and_categories(board):
    assert {entry.kind for entry in board.entries} == {*RIVALS, "popular"}
    popular = board.of("popular")
    for kind in ("lightgbm", "logistic"):
        assert board.of(kind).valid_logloss < popular.valid_logloss - 0.01
        assert board.of(kind).valid_auc > popular.valid_auc + 0.02


def test_every_rival_has_a_cost(board):
    assert all(board.of(kind).us_per_candidate > 0 for kind in RIVALS)


def test_rivals_that_are_on_the_leaderboard_are_not_trained_again(board):
    before = list(board.entries)
    compete(board, ENCODER, dataset(0, 1), dataset(2_000, 2), Examination(), lambda text: None, tuning_s=60.0)
    assert board.entries == before


def test_the_leaderboard_holds_the_settings_that_tuning_found(board):
    train, test = dataset(6_000, 1), dataset(500, 2)
    found = tuned(ENCODER, train)
    assert board.of("lightgbm").point == found
    assert found["num_leaves"] in LEAVES
    assert 1 <= found["num_iterations"] < MAX_TREES
    again, fewer = lightgbm(ENCODER, train, **found), lightgbm(ENCODER, train, num_leaves=7, num_iterations=1)
    assert np.array_equal(again(test.matrix), lightgbm(ENCODER, train)(test.matrix))
    assert not np.array_equal(again(test.matrix), fewer(test.matrix))


def test_tuning_begins_no_try_after_its_time():
    assert tuned(ENCODER, dataset(2_000, 1), seconds=0.0)["num_leaves"] == LEAVES[0]


def test_a_rivals_scores_are_probabilities_whatever_the_numbers():
    train, test = dataset(2_000, 1), dataset(100, 2)
    test.matrix.numeric[0] = [np.float32(3e38), -np.float32(3e38)]
    for make in RIVALS.values():
        chance = make(ENCODER, train)(test.matrix)
        assert chance.shape == (100,)
        assert ((chance >= 0) & (chance <= 1)).all()


def test_the_cost_of_a_network_is_known_before_it_is_trained():
    assert us_per_candidate(ENCODER, NetworkConfig(width=8, n_steps=1), dataset(500, 1).matrix) > 0
