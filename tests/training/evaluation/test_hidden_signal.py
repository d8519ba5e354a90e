"""Test that no learned curve alone decides, where the ranker that wrote the log knew more.

The runs of `make proofs` are many; those of the fast lane are few and smaller.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from tests.support.expected import expected
from tests.support.hidden_world import DECAY, FLAT, PER, WORTH, Judged, hidden
from training.evaluation.metrics import Z95, Contender
from training.evaluation.paired import bounds
from training.evaluation.slates import Slates
from training.evaluation.verdict import not_beaten
from training.examination.examination import Examination

proof = (pytest.mark.integration, pytest.mark.no_ray, pytest.mark.proof)


def runs(few: int, many: int):
    return pytest.mark.parametrize(
        ("runs", "slates"), [(few, 2_000), pytest.param(many, 6_000, marks=proof)], ids=["few", "many"]
    )


@runs(2, 60)
def test_an_order_that_lacks_the_hidden_signal_does_not_beat_the_shown_one(surface, runs, slates):
    """All positions are looked at alike, so that no order earns more than another."""
    by_curve, wrong = 0, 0
    for seed in range(runs):
        judged = Judged(surface, seed, FLAT, slates)
        assert judged.examination.source == "learned"
        pair = judged.pair(judged.model(), judged.rule(-judged.second.rows.position.astype(float)))
        by_curve += pair["expected_labels"] > 2 * pair["expected_labels_se"]
        wrong += pair["gate"]["beats"]
    assert by_curve >= 0.9 * runs
    assert wrong <= 0.1 * runs
    (text,) = not_beaten({"model-popular": pair})
    assert text.startswith(
        "the model orders better than popular, or the old ranker knew more than these features: "
    )
    assert "; NDCG@10 -0." in text
    assert text.endswith("or an experiment whose arms order otherwise, would tell")


@pytest.mark.parametrize("rival", ["popular", "current"])
@runs(1, 20)
def test_an_order_that_earns_a_twentieth_more_is_accepted(surface, rival, runs, slates):
    accepted = 0
    for seed in range(runs):
        judged = Judged(surface, seed, DECAY, slates)
        second = judged.second
        if rival == "popular":
            fame = judged.rule(second.rows.popular)
            taste = judged.taste_that_earns(1.05 * second.joins(second.rows.popular))
            accepted += judged.pair(judged.model(taste), fame)["gate"]["beats"]
        else:
            taste = judged.taste_that_earns(second.joins(judged.score(second, 1.0)) / 1.05)
            ours, theirs = judged.model(), judged.model(taste)
            pair = judged.pair(ours, theirs)
            both = [one.measures() | {"expected_labels": 1.0} for one in (ours, theirs)]
            found = bounds(pair, *both, float(judged.slates.label.mean()))
            assert found[0]["measure"] == "ndcg@10"
            accepted += all(one["holds"] for one in found)
    assert accepted >= 0.8 * runs


@pytest.mark.parametrize("ranker", ["legacy", "honest"])
@pytest.mark.parametrize(
    ("slates", "runs", "least"),
    [(1_500, 6, 0.8), *(pytest.param(*how, 0.93, marks=proof) for how in ((6_000, 200), (40_000, 60)))],
)
def test_expected_labels_at_a_known_examination_cover_the_truth(ranker, slates, runs, least):
    covered = 0
    for seed in range(runs):
        world = hidden(slates, seed, DECAY, arms=(ranker,))
        rows, slate = world.rows, Slates(world.rows.label, world.rows.slate, world.rows.viewer)
        score = expit(rows.matrix.numeric.astype(np.float64) @ np.append(WORTH[:2], 0.0) - 2.85)
        both = {
            "model": Contender.of(slate, score, score),
            "popular": Contender.of(slate, rows.popular, None),
        }
        known = Examination("explored", tuple(DECAY), (0.0,) * PER, 1_000)
        value, error = expected(both, rows.position, known).difference("model", "popular")
        covered += abs(value - world.joins(score) + world.joins(rows.popular)) < Z95 * error
    assert covered >= least * runs
