from __future__ import annotations

import math

import pytest

from training.fit.loop import FitConfig
from training.network.network import NetworkConfig
from training.search.leaderboard import Leaderboard
from training.search.space import SMALLEST, Space
from training.search.study import Study

SPACE = Space(150_000)


def cost(network: NetworkConfig) -> float:
    return network.width * network.n_steps / 16


@pytest.fixture
def board(tmp_path) -> Leaderboard:
    return Leaderboard(tmp_path / "leaderboard.jsonl")


def study(
    board, *, first=(), max_us=None, cost=cost, in_time=lambda config: True, on_entry=lambda entry: None
) -> Study:
    known = {"first": first, "cost": cost, "max_us": max_us, "in_time": in_time, "on_entry": on_entry}
    return Study(SPACE, FitConfig(), board, worst=0.5, **known)


def finished(point) -> dict[str, object]:
    """Result of a trial as Ray Tune reports it: learning rate 0.01 is best, and wider is better."""
    loss = 0.4 + 0.02 * abs(math.log(point["learning_rate"] / 0.01)) - 0.0001 * point["width"]
    return {"valid_logloss": loss, "valid_auc": 0.8, "share": 1.0, "seconds": 2.0}


def test_no_network_above_the_cost_is_ever_suggested(board):
    searcher = study(board, max_us=2.0)
    for number in range(25):
        point = searcher.suggest(str(number))
        assert cost(SPACE.config(point, FitConfig()).network) <= 2.0
        searcher.on_trial_complete(str(number), finished(point))
    assert all(entry.us_per_candidate <= 2.0 for entry in board.entries)


def test_a_cost_that_only_the_smallest_network_fits_selects_it(board):
    searcher = study(board, max_us=cost(SMALLEST))
    points = [searcher.suggest(str(number)) for number in range(3)]
    assert all(point["width"] == 8 and point["n_steps"] == 1 for point in points)


def test_a_study_whose_cost_no_network_fits_ends(board):
    assert study(board, max_us=cost(SMALLEST) / 2).suggest("a") == Study.FINISHED


def test_what_would_not_end_in_time_is_not_begun(board):
    searcher = study(board, in_time=lambda config: config.epochs <= 3)
    assert all(searcher.suggest(str(number))["epochs"] <= 3 for number in range(5))
    assert study(board, in_time=lambda config: False).suggest("a") == Study.FINISHED


def test_the_first_configurations_are_tried_once_even_after_a_kill(board):
    first = [FitConfig(NetworkConfig(width=w)) for w in (48, 24, 16)]
    searcher = study(board, first=first)
    for name in ("a", "b"):
        searcher.on_trial_complete(name, finished(searcher.suggest(name)))
    assert [entry.point["width"] for entry in board.entries] == [48, 24]
    assert study(Leaderboard(board.path), first=first).suggest("c")["width"] == 16


def test_a_trial_that_dies_is_on_the_leaderboard_with_its_reason(board):
    reported = []
    searcher = study(board, on_entry=reported.append)
    searcher.suggest("a")
    searcher.on_trial_complete("a", None, error=True)
    searcher.suggest("b")
    searcher.on_trial_complete("b", {"valid_logloss": math.inf, "failed": "the gradient became nan"})
    assert [entry.failed for entry in board.entries] == ["its process died", "the gradient became nan"]
    assert reported == board.entries
    assert board.ranking(None) == []
    assert searcher.suggest("c")


def test_the_study_learns_from_what_it_tried(board):
    searcher = study(board)
    for number in range(40):
        searcher.on_trial_complete(str(number), finished(searcher.suggest(str(number))))
    rates = [abs(math.log(entry.point["learning_rate"] / 0.01)) for entry in board.entries]
    assert sum(rates[25:]) / 15 < 0.7 * sum(rates[:10]) / 10


def test_nothing_of_a_study_is_pickled(board):
    assert study(board).__getstate__() == {}
