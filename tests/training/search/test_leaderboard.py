from __future__ import annotations

from dataclasses import replace

import pytest

from training.search.leaderboard import BoardEntry, Leaderboard

ONE = BoardEntry("TabNet 1", "tabnet", 0.40, us_per_candidate=2.0, point={"epochs": 3})


@pytest.fixture
def board(tmp_path) -> Leaderboard:
    return Leaderboard(tmp_path / "leaderboard.jsonl")


def test_a_leaderboard_read_again_holds_what_was_added(board):
    failed = replace(ONE, valid_logloss=None, failed="it diverged")
    entries = [ONE, BoardEntry("popular", "popular", 0.5), failed]
    for entry in entries:
        board.add(entry)
    assert Leaderboard(board.path).entries == entries


def test_a_line_that_was_cut_short_is_forgotten_and_the_next_one_kept(board):
    board.add(ONE)
    whole = board.path.read_bytes()
    board.path.write_bytes(whole + whole[:20])
    again = Leaderboard(board.path)
    assert again.entries == [ONE]
    again.add(replace(ONE, name="TabNet 2"))
    assert [entry.name for entry in Leaderboard(board.path).entries] == ["TabNet 1", "TabNet 2"]


def test_the_winner_is_the_best_finished_network_that_fits_its_cost(board):
    for entry in (
        ONE,
        replace(ONE, name="dear", valid_logloss=0.38, us_per_candidate=9.0),
        replace(ONE, name="stopped", valid_logloss=0.3, share=0.5),
        replace(ONE, name="failed", valid_logloss=None),
        replace(ONE, name="rival", kind="lightgbm", valid_logloss=0.2),
    ):
        board.add(entry)
    assert board.winner(5.0).name == "TabNet 1"
    assert board.winner(None).name == "dear"
    assert board.winner(1.0) is None


def test_no_trial_that_is_added_makes_the_best_so_far_worse(board):
    best = []
    for number, logloss in enumerate((0.41, 0.43, 0.40, 0.45, 0.39)):
        board.add(replace(ONE, name=f"TabNet {number}", valid_logloss=logloss))
        best.append(board.winner(None).logloss)
    assert best == sorted(best, reverse=True)


def test_the_table_is_sorted_and_names_the_front_of_cost_and_quality(board):
    for name, logloss, us in (
        ("cheap", 0.42, 1.0),
        ("worse", 0.43, 1.5),
        ("good", 0.40, 2.0),
        ("dear", 0.40, 3.0),
    ):
        board.add(replace(ONE, name=name, valid_logloss=logloss, us_per_candidate=us))
    board.add(BoardEntry("popular", "popular", 0.5, us_per_candidate=0.0))
    table = board.table(max_us=1.2)
    assert [line["name"] for line in table] == ["good", "dear", "cheap", "worse", "popular"]
    assert [line["name"] for line in table if line["front"]] == ["good", "cheap"]
    assert [line["name"] for line in table if line["fits"]] == ["cheap", "popular"]
