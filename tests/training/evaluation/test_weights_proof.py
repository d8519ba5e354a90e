"""Test the exchange rate of a weight over logs whose truth is known, and what is recommended by it.

The runs of `make proofs` are many; those of the fast lane are few and smaller.
"""

from __future__ import annotations

import pytest

from serve.features.surface import read_surface
from tests.support.trade_world import ENCODER, KNOWN, surface, trade, without_signal
from training.evaluation.what_if import exchange, swept_weights
from training.examination.estimate import examine_each

proof = (pytest.mark.integration, pytest.mark.no_ray, pytest.mark.proof)
OWN = surface().worth
# The weight of an outcome without signal is positive, as that of one that somebody wants more of.
WANTED = read_surface(surface().text.replace("weights.hide = -2", "weights.hide = 0.5"))
SWEEP = [-50.0, -20.0, -10.0, 0.0]


@pytest.fixture(scope="module")
def truth():
    """Return the joins and hides that each weight gains in truth, from many slates."""
    many = trade(40_000, 2**31)
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


@pytest.mark.parametrize(("runs", "most"), [(1, 0), pytest.param(40, 2, marks=proof)], ids=["few", "many"])
def test_no_weight_is_recommended_for_an_outcome_without_signal(runs, most):
    worlds, chosen = [without_signal(trade(1_500, seed), seed) for seed in range(runs)], {}
    for end in (2, 10, 100):
        name, values = swept_weights(f"hide=0..{end}", WANTED)
        found = [exchange(one.rows, one.shares, WANTED, [KNOWN] * 2, name, values, 0.01) for one in worlds]
        chosen[end] = sum(one["chosen"] is not None for one in found)
        assert all(one["chosen"] or one["more_log"] is None or one["more_log"] > 1 for one in found)
    print(f"of {runs} logs without signal, a weight is recommended in {chosen}, by the end of the sweep")
    assert max(chosen.values()) <= most


@pytest.mark.parametrize(("runs", "least"), [(1, 1), pytest.param(20, 20, marks=proof)], ids=["few", "many"])
def test_a_weight_that_truly_helps_is_recommended(runs, least):
    """Hides truly fall with each step; -6 costs 4.0 % of the joins, -7 4.8 %."""
    values = swept_weights("hide=-10..0", surface())[1]
    worlds = [trade(6_000, seed) for seed in range(runs)]
    found = [exchange(one.rows, one.shares, surface(), [KNOWN] * 2, "hide", values, 0.05) for one in worlds]
    assert sum(one["chosen"] in (-6, -7) for one in found) >= least
