from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.evaluation.metrics import Contender
from training.evaluation.slates import Slates
from training.search.leaderboard import GROUPS, BoardEntry, Judged, Leaderboard

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


def test_a_write_that_was_cut_short_is_forgotten_and_the_next_one_kept(board, monkeypatch):
    board.add(ONE)
    whole = Path.write_bytes

    def cut_short(path, content):
        whole(path, content[:-20])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", cut_short)
    with pytest.raises(KeyboardInterrupt):
        board.add(replace(ONE, name="TabNet 2"))
    monkeypatch.undo()
    again = Leaderboard(board.path)
    assert again.entries == [ONE]
    again.add(replace(ONE, name="TabNet 3"))
    assert [entry.name for entry in Leaderboard(board.path).entries] == ["TabNet 1", "TabNet 3"]


def test_the_winner_is_the_best_finished_network_that_fits_its_cost(board):
    for entry in (
        ONE,
        replace(ONE, name="dear", valid_logloss=0.38, us_per_candidate=9.0),
        replace(ONE, name="stopped", valid_logloss=0.3, share=0.5),
        replace(ONE, name="failed", valid_logloss=None),
        replace(ONE, name="rival", kind="lightgbm", valid_logloss=0.2),
    ):
        board.add(entry)
    assert board.ranking(5.0)[0].name == "TabNet 1"
    assert board.ranking(None)[0].name == "dear"
    assert board.ranking(1.0) == []


def test_the_cheapest_network_that_one_error_does_not_tell_from_the_best_is_taken(board):
    rng = np.random.default_rng(0)
    base = rng.normal(0.4, 0.02, GROUPS) / GROUPS

    def network(name, more, us):
        """A network whose logloss is so many errors above that of `base`."""
        noise = rng.normal(0, 1e-3, GROUPS)
        noise += (
            (more - noise.sum() / (noise.std(ddof=1) * np.sqrt(GROUPS))) * noise.std(ddof=1) / np.sqrt(GROUPS)
        )
        losses = base + noise
        return replace(
            ONE, name=name, valid_logloss=losses.sum(), us_per_candidate=us, losses=losses.tolist()
        )

    best = replace(ONE, name="best", valid_logloss=base.sum(), us_per_candidate=3.0, losses=base.tolist())
    for entry in (network("far", 1.6, 0.2), network("near", 0.8, 0.5), best, network("dear", 0.5, 4.0)):
        board.add(entry)
    assert [entry.name for entry in board.ranking(None)] == ["near", "best", "dear", "far"]
    # Without losses, as an older search has them, nothing is known to be level.
    board.add(replace(ONE, name="old", valid_logloss=base.sum() - 1e-6, us_per_candidate=9.0))
    assert board.ranking(None)[0].name == "old"


def test_no_trial_that_is_added_makes_the_best_so_far_worse(board):
    best = []
    for number, logloss in enumerate((0.41, 0.43, 0.40, 0.45, 0.39)):
        board.add(replace(ONE, name=f"TabNet {number}", valid_logloss=logloss))
        best.append(board.ranking(None)[0].logloss)
    assert best == sorted(best, reverse=True)


def test_the_table_is_sorted_and_says_what_fits(board):
    for name, logloss, us in (
        ("cheap", 0.42, 1.0),
        ("worse", 0.43, 1.5),
        ("good", 0.40, 2.0),
        ("dear", 0.40, 3.0),
    ):
        board.add(replace(ONE, name=name, valid_logloss=logloss, us_per_candidate=us))
    board.add(BoardEntry("popular", "popular", 0.5, us_per_candidate=0.0))
    table = board.table(1.2, ONE)
    assert [line["name"] for line in table] == ["good", "dear", "cheap", "worse", "popular"]
    assert [line["name"] for line in table if line["fits"]] == ["cheap", "popular"]
    # Without losses by viewer, as in the file of an older search, a tie is not known.
    assert {line["tie"] for line in table} == {None}


VIEWERS = np.repeat(np.arange(800), 25)
LOGIT = np.random.default_rng(0).normal(size=len(VIEWERS))
LABEL = (np.random.default_rng(1).random(len(LOGIT)) < 1 / (1 + np.exp(-LOGIT))).astype(np.float32)
SLATES = Slates(LABEL, np.arange(len(LABEL)) // 5, VIEWERS)
JUDGED = Judged(LABEL[:, None], SLATES.slate, VIEWERS, np.ones(1))


def contender(noise: float, seed: int) -> Contender:
    """Return the true probabilities after noise in their logits."""
    chance = 1 / (1 + np.exp(-LOGIT - noise * np.random.default_rng(seed).normal(size=len(LOGIT))))
    return Contender.of(SLATES, chance, chance)


def losses(one: Contender) -> list[float]:
    return JUDGED.losses(one.chance[:, None])


def entry(noise: float, seed: int) -> BoardEntry:
    found = losses(contender(noise, seed))
    return replace(ONE, name=f"{noise} {seed}", valid_logloss=sum(found), losses=found)


def test_a_tie_is_what_two_errors_of_the_paired_difference_do_not_tell_apart(board):
    for one in (entry(0.1, 0), entry(0.1, 1), entry(0.5, 2)):
        board.add(one)
    best = board.entries[0]
    again = Leaderboard(board.path)
    assert {line["name"]: line["tie"] for line in again.table(None, best)} == {
        "0.1 0": True,
        "0.1 1": True,
        "0.5 2": False,
    }
    # Models that are equally good are a tie in about 95 % of the cases.
    equals = [entry(0.1, seed) for seed in range(60)]
    ties = [one.ties(other) for one, other in zip(equals[::2], equals[1::2], strict=True)]
    assert np.mean(ties) >= 0.85


def test_losses_by_group_add_up_and_have_the_error_by_viewers():
    ours, theirs = contender(0.1, 3), contender(0.5, 3)
    assert len(losses(ours)) == GROUPS
    assert sum(losses(ours)) == pytest.approx(ours.measures()["logloss"])
    by_group = np.subtract(losses(ours), losses(theirs))
    difference, error = ours.minus(theirs, "logloss")
    assert by_group.sum() == pytest.approx(difference)
    assert GROUPS**0.5 * by_group.std(ddof=1) == pytest.approx(error, rel=0.2)


def test_several_outcomes_are_judged_by_the_sum_of_their_loglosses():
    rng = np.random.default_rng(4)
    rare = (rng.random(len(LABEL)) < 0.005).astype(np.float32)
    # Its window is open at the newest rows.
    rare[-5_000:] = np.nan
    chance = np.stack([1 / (1 + np.exp(-LOGIT)), np.full(len(LABEL), 0.005)], axis=1)
    both = Judged(np.stack([LABEL, rare], axis=1), SLATES.slate, VIEWERS, np.array([1.0, -5.0]))
    parts = [Judged(each[:, None], SLATES.slate, VIEWERS, np.ones(1)) for each in (LABEL, rare)]
    one, other = (part.losses(chance[:, k : k + 1]) for k, part in enumerate(parts))
    np.testing.assert_allclose(both.losses(chance), np.add(one, other))
    # An order by both gains more than the one by the first alone, whose rare outcomes cost.
    known = np.nan_to_num(rare)
    assert both.ndcg(LOGIT - 5.0 * known) > both.ndcg(LOGIT)
    # Constant predictions lose the entropies, and an outcome known at no row nothing.
    rates = [np.nanmean(one, dtype=float) for one in (LABEL, rare)]
    entropies = [-rate * np.log(rate) - (1 - rate) * np.log1p(-rate) for rate in rates]
    assert both.worst == pytest.approx(sum(entropies))
    unknown = replace(both, outcomes=np.stack([LABEL, np.full_like(LABEL, np.nan)], axis=1))
    assert unknown.worst == pytest.approx(entropies[0])
    entry = both.entry("popular", LOGIT, LOGIT, chance, us_per_candidate=0.0)
    assert entry.valid_logloss == pytest.approx(sum(entry.losses))
    assert entry.valid_auc == pytest.approx(contender(0.0, 0).measures()["auc"])
