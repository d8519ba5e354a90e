"""Test that the cost of a rule holds the true one, over logs whose truth is known.

The runs of `make proofs` are many; those of the fast lane are few and smaller.
"""

from __future__ import annotations

import pytest

from tests.support.ruled_world import BOOST, SPREAD, costs, ruled_world, true_change
from tests.support.trade_world import ENCODER, KNOWN, surface
from training.examination.estimate import examine_each

proof = (pytest.mark.integration, pytest.mark.no_ray, pytest.mark.proof)
RULES = {"boost": [BOOST], "spread": [SPREAD]}


@pytest.mark.parametrize(
    ("curve", "runs", "slates", "many", "least"),
    [
        ("known", 1, 1_000, 0, 1),
        ("learned", 1, 1_000, 0, 1),
        pytest.param("known", 20, 6_000, 100_000, 18, marks=proof),
        # A learned curve also errs between places that are near each other, which its intervals do
        # not count: those of 60 logs held the truth of a spread in 53, and of a boost in 55.
        pytest.param("learned", 20, 6_000, 100_000, 16, marks=proof),
    ],
)
def test_the_true_cost_of_a_rule_lies_in_its_interval(curve, runs, slates, many, least):
    def truth_of(world):
        return {name: true_change(world, rules) for name, rules in RULES.items()}

    truth = truth_of(ruled_world(many, 2**31)) if many else {}
    within = dict.fromkeys(((name, outcome) for name in RULES for outcome in surface().predicted), 0)
    for seed in range(runs):
        world = ruled_world(slates, seed)
        examinations = [KNOWN] * 2 if curve == "known" else examine_each(world.rows, ENCODER, surface())
        # Without many slates, those of the log tell their own truth.
        true = truth or truth_of(world)
        for name, rules in RULES.items():
            for outcome, found in costs(world, rules, examinations)["costs"][0]["outcomes"].items():
                # No log refuses an estimate.
                _, low, high = found["change"]
                within[name, outcome] += low <= true[name][outcome] <= high
                # An interval that holds everything would say nothing.
                assert outcome == "hide" or high - low < 2 * abs(true[name]["join"])
    print(f"{curve}: of {runs} intervals hold the truth {within}; of many slates it is {truth}")
    assert min(within.values()) >= least, within
