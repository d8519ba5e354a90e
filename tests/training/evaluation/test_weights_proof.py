"""Test that the exchange rate of a weight holds the true one, over logs whose truth is known.

The runs of `make proofs` are many; those of the fast lane are few and smaller.
"""

from __future__ import annotations

import pytest

from tests.support.trade_world import ENCODER, KNOWN, surface, trade
from training.evaluation.sweep import exchange
from training.examination.estimate import examine_each

proof = (pytest.mark.integration, pytest.mark.no_ray, pytest.mark.proof)
OWN = surface().worth
SWEEP = [-50.0, -20.0, -10.0, 0.0]


@pytest.fixture(scope="module")
def truth():
    """Return the joins and hides that each weight gains in truth, from many slates."""
    many = trade(100_000, 2**31)
    base = many.earns(OWN)
    return {weight: many.earns(OWN | {"hide": weight}) - base for weight in SWEEP}


@pytest.mark.parametrize("curve", ["known", "learned"])
@pytest.mark.parametrize(
    ("runs", "slates", "least"),
    [(1, 4_000, 1), pytest.param(40, 6_000, 36, marks=proof)],
    ids=["few", "many"],
)
def test_the_true_effect_of_a_weight_lies_in_its_interval(truth, curve, runs, slates, least):
    within = dict.fromkeys(((weight, name) for weight in SWEEP for name in OWN), 0)
    widths, effect = [], abs(truth[SWEEP[0]] - truth[SWEEP[-1]])
    for seed in range(runs):
        world = trade(slates, seed)
        examinations = [KNOWN] * 2 if curve == "known" else examine_each(world.rows, ENCODER, surface())
        found = exchange(world.rows, world.shares, surface(), examinations, "hide", SWEEP, 0.01)
        for point in found["points"]:
            for name, true in zip(OWN, truth[point["weight"]], strict=True):
                _, low, high = point["outcomes"][name]["change"]
                within[point["weight"], name] += low <= true <= high
                if name == "hide":
                    widths.append(high - low)
    assert min(within.values()) >= least, within
    assert max(widths) <= effect[1] / 4
