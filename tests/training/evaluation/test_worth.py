"""Test the expected amounts of several outcomes, and their weighed sum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.expected import expected
from tests.support.trade_world import KNOWN, PER, trade
from training.evaluation.counterfactual import Estimate, at_once
from training.evaluation.metrics import Contender, is_shown
from training.evaluation.slates import Slates
from training.evaluation.worth import Worth, expected_amounts, odds_of
from training.examination.examination import Examination

SCALES = {"join": 1.0, "hide": 1.0}
WEIGHTS = {"join": 1.0, "hide": -5.0}


@pytest.fixture(scope="module")
def world():
    return trade(900, 0)


def orders(world):
    return {"joins": world.shares[:, 0], "fewer hides": world.shares @ [1.0, -5.0]}


def found(world, data=None, scales=SCALES, curves=(KNOWN, KNOWN)) -> Worth:
    data = world.rows if data is None else data
    names = orders(world)
    odds = [odds_of(names, dict.fromkeys(names, world.shares), k) for k in range(2)]
    return expected_amounts(data, names, scales, curves, odds)


def test_with_one_outcome_the_numbers_are_those_of_expected_labels(world):
    data = world.rows.of(0)
    slates = Slates(data.label, data.slate, data.viewer)
    score, popular = world.shares[:, 0], data.popular
    contenders = {
        "model": Contender.of(slates, score, score),
        "popular": Contender.of(slates, popular, None),
    }
    one = expected(contenders, data.position, KNOWN)
    names = {"model": score, "popular": popular}
    odds = [odds_of(names, {"model": score[:, None]}, 0)]
    many = expected_amounts(data, names, {"join": 1.0}, [KNOWN], odds)
    for name in names:
        want = one.estimates[name]
        for got in (many.estimates["join"][name], many.weighed(name, {"join": 1.0})):
            assert (got.value, got.shift) == (want.value, want.shift)
            np.testing.assert_array_equal(got.influence, want.influence)
    difference = many.weighed("model", {"join": 1.0}, "popular")
    assert (difference.value, difference.error(many.cluster)) == one.difference("model", "popular")
    assert many.about["join"] == one.about


def test_a_scale_turns_shares_into_units(world):
    shares, minutes = found(world), found(world, scales={"join": 60.0, "hide": 1.0})
    for name in orders(world):
        want, got = (one.estimates["join"][name] for one in (shares, minutes))
        assert got.value == pytest.approx(60 * want.value)
        assert got.error(minutes.cluster) == pytest.approx(60 * want.error(shares.cluster))


def test_the_weighed_sum_counts_how_errors_go_together(world):
    """Without covariances the error would be the root of the sum of squares."""
    worth = found(world)
    total = worth.weighed("joins", WEIGHTS)
    each = [worth.estimates[name]["joins"] for name in SCALES]
    assert total.value == pytest.approx(each[0].value - 5 * each[1].value)
    np.testing.assert_allclose(total.influence, each[0].influence - 5 * each[1].influence)
    # The same outcome twice, of opposite weight, is nothing.
    twice = replace(world.rows, outcomes=world.rows.outcomes[:, [0, 0]])
    names = orders(world)
    odds = [odds_of(names, dict.fromkeys(names, world.shares), 0)] * 2
    same = expected_amounts(twice, names, SCALES, [KNOWN, KNOWN], odds)
    nothing = same.weighed("joins", {"join": 1.0, "hide": -1.0})
    assert nothing.value == 0
    assert nothing.error(same.cluster) == 0
    against = worth.weighed("fewer hides", WEIGHTS, "joins")
    assert against.value == pytest.approx(worth.weighed("fewer hides", WEIGHTS).value - total.value)


def test_an_uncertain_curve_moves_the_outcomes_that_share_it_together(world):
    unsure = replace(KNOWN, error=tuple(0.1 * (np.arange(20) > 0)))
    other = replace(unsure, events=2_000)
    both = dict.fromkeys(SCALES, 1.0)
    shared, apart = (found(world, curves=(unsure, one)) for one in (unsure, other))
    shifts = [shared.estimates[name]["joins"].shift for name in SCALES]
    assert all(shifts)
    assert abs(shared.weighed("joins", both).shift) == pytest.approx(abs(sum(shifts)))
    assert apart.weighed("joins", both).shift == pytest.approx(np.hypot(*shifts))


def test_slates_whose_outcome_is_unknown_do_not_count_for_it_alone(world):
    """Of the last third of the slates, hides are not known yet."""
    outcomes = world.rows.outcomes.copy()
    outcomes[world.rows.slate >= 600, 1] = np.nan
    masked = found(world, replace(world.rows, outcomes=outcomes))
    assert masked.estimates["join"]["joins"].value == found(world).estimates["join"]["joins"].value
    hides = masked.estimates["hide"]["joins"]
    assert not hides.influence[600:].any()
    early = world.rows.take(slice(0, 12_000))
    names = {name: score[:12_000] for name, score in orders(world).items()}
    odds = [odds_of(orders(world), dict.fromkeys(names, world.shares), k)[:12_000] for k in range(2)]
    alone = expected_amounts(early, names, SCALES, [KNOWN, KNOWN], odds)
    want = alone.estimates["hide"]["joins"]
    assert hides.value == pytest.approx(want.value)
    assert hides.error(masked.cluster) == pytest.approx(want.error(alone.cluster), rel=1e-3)


def test_the_draw_of_a_slate_that_lacks_a_row_is_not_known(world):
    weight = np.zeros(len(world.rows))
    outcomes = world.rows.outcomes.copy()
    outcomes[0, 1] = np.nan
    drawn = found(world, replace(world.rows, outcomes=outcomes, weight=weight))
    assert drawn.about["join"]["explored_rows"] == 18_000
    assert drawn.about["hide"]["explored_rows"] == 17_980


def test_an_outcome_without_support_has_a_reason_and_no_sum(world):
    outcomes = world.rows.outcomes.copy()
    outcomes[:, 1] *= world.rows.slate < 40
    worth = found(world, replace(world.rows, outcomes=outcomes))
    assert "effective label events" in worth.about["hide"]["reason"]
    assert worth.weighed("joins", {"hide": 1.0}, "fewer hides") is None
    assert worth.weighed("joins", WEIGHTS) is None
    assert worth.weighed("joins", {"join": 1.0, "hide": 0.0}) is not None


def test_without_a_prediction_attraction_follows_the_ranks(world):
    names = {"model": world.shares[:, 0], "rule": world.rows.popular}
    missing = np.stack([world.shares[:, 0], np.full(len(world.rows), np.nan)], axis=1)
    by_share, by_rank = odds_of(names, {"model": missing}, 0), odds_of(names, {"model": missing}, 1)
    np.testing.assert_allclose(by_share[:, 0], np.log(world.shares[:, 0] / (1 - world.shares[:, 0])))
    assert np.abs(np.sort(by_rank[:, 0]) - np.sort(by_rank[:, 1])).max() < 1e-3


@pytest.mark.parametrize("num_viewers", [5, 19, 20])
def test_an_amount_that_a_few_viewers_changed_is_not_shown(num_viewers):
    """Each of so many viewers has an event that an order moves up; none has one moved down."""
    num = 4_000
    outcomes = np.zeros((2 * num, 1), np.float32)
    # Most events are of slates where the two orders agree.
    outcomes[2 * num_viewers :: 20] = 1
    outcomes[1 : 2 * num_viewers : 2] = 1
    swaps = np.repeat(np.arange(num) < num // 2, 2)
    swaps[2 * num_viewers :: 20] = swaps[2 * num_viewers + 1 :: 20] = False
    base = np.tile([1.0, 0.0], num)
    world = trade(2 * num // PER, 0)
    slate = np.repeat(np.arange(num), 2)
    rows = replace(world.rows, outcomes=outcomes, slate=slate, viewer=slate, position=np.tile([0, 1], num))
    orders = {"other": np.where(swaps, 1 - base, base), "own": base}
    curve = Examination("explored", (1.0, 0.7), (0.0, 0.0), 1_000)
    worth = expected_amounts(
        rows, orders, {"join": 1.0}, [curve], [np.random.default_rng(0).normal(size=(2 * num, 1))]
    )
    found = worth.compared("join", "other", "own")
    assert found["change"][1] > 0
    assert found["viewers"] == pytest.approx(num_viewers, rel=0.05)
    assert is_shown(found) == (num_viewers >= 20)
    gain = worth.weighed("other", {"join": 1.0}, "own").told(worth.cluster)
    assert (gain[0] is None) == (num_viewers < 20)
    assert worth.weighed("own", {"join": 1.0}, "own").told(worth.cluster) == (0, 0)


def test_intervals_of_many_estimates_hold_at_once():
    """Of estimates that are one, a single interval holds; of twenty apart, it is wider."""
    rng, cluster = np.random.default_rng(0), np.arange(2_000)
    alike = [Estimate(0.0, rng.normal(size=2_000))] * 20
    apart = [Estimate(0.0, rng.normal(size=2_000)) for _ in range(20)]
    assert at_once(alike, cluster) == pytest.approx(1.96, abs=0.03)
    # The quantile of the largest of twenty, 1 − (1 − 0.05)^(1/20).
    assert at_once(apart, cluster) == pytest.approx(3.02, abs=0.05)
    assert at_once([Estimate(0.0, np.zeros(2_000))], cluster) == pytest.approx(1.96, abs=0.001)
