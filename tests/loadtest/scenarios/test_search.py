"""Tests of the search for the knee, against models of a service, without requests or waiting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.scenarios.search import KneePlan, KneeStep, confirm_knee, find_knee

PLAN = KneePlan()


class Model:
    """Service with a knee: above it latencies break, above 1.1 times it answers are missing too."""

    def __init__(self, knee_rps, generator_rps=float("inf"), hiccups=()):
        self.knee_rps = knee_rps
        # The generator is late from this rate on.
        self.generator_rps = generator_rps
        # Steps, counted from 0, that another program on the machine breaks.
        self.hiccups = set(hiccups)
        self.steps_run = []
        self.now_s = 0.0

    def measure(self, rate_rps, warmup_s, seconds, phase):
        self.now_s += warmup_s + seconds
        if phase not in ("warm-up", "look"):
            self.steps_run.append((round(rate_rps, 1), warmup_s, seconds, phase))
        held = rate_rps <= self.knee_rps and (phase == "look" or len(self.steps_run) - 1 not in self.hiccups)
        late = rate_rps >= self.generator_rps
        kept_up = rate_rps <= 1.1 * self.knee_rps
        return KneeStep(
            rate_rps=rate_rps,
            verdict="void" if late else "held" if held else "not held",
            reasons=[] if held and not late else ["as the model says"],
            kept_up=kept_up,
            phase=phase,
            numbers={},
        )

    def search(self, plan=PLAN):
        return find_knee(self.measure, plan, clock=lambda: self.now_s, rest=self.rest)

    def rest(self, seconds):
        self.now_s += seconds


def rates(found):
    return [step.rate_rps for step in found.steps]


@pytest.mark.parametrize("knee_rps", [10, 45, 149, 150, 151, 206, 900, 1_777, 3_882])
def test_the_knee_is_found_within_the_resolution_and_never_above(knee_rps):
    found = Model(knee_rps).search()
    assert knee_rps / PLAN.resolution / 1.01 <= found.confirmed.rate_rps <= knee_rps


def test_the_rate_doubles_until_it_is_out_of_reach_then_the_gap_is_halved():
    found = Model(1_000).search()
    looks = [step.rate_rps for step in found.steps if step.phase == "look"]
    # A rate out of reach is tried twice.
    assert looks[:6] == [150, 300, 600, 1200, 1200, 600]
    judged = [step.rate_rps for step in found.steps if step.phase == "search"]
    assert judged[:2] == [600, 848.5]
    assert found.steps[-1].phase == "confirm"


def test_what_is_within_reach_but_slow_is_halved_until_it_holds():
    class Slow(Model):
        """Service that keeps up with any rate, and is in time up to its knee."""

        def measure(self, *how):
            step = super().measure(*how)
            return replace(step, kept_up=step.rate_rps <= 2_000)

    found = Slow(200).search()
    judged = [step.rate_rps for step in found.steps if step.phase == "search"]
    assert list(dict.fromkeys(judged))[:5] == [1200, 600, 300, 150, 212.1]
    assert found.confirmed.rate_rps == pytest.approx(200, rel=0.05)


def test_where_no_rate_holds_there_is_no_knee():
    found = Model(3).search()
    assert found.confirmed is None
    assert min(rates(found)) >= PLAN.lowest_rps
    assert "confirm" not in {step.phase for step in found.steps}


def test_a_hiccup_is_tried_again_and_costs_nothing():
    found = Model(1_000, hiccups=[0]).search()
    judged = [(step.rate_rps, step.phase, step.verdict) for step in found.steps if step.phase != "look"]
    assert judged[:2] == [(600, "search", "not held"), (600, "search", "held")]
    assert found.confirmed.rate_rps > 950


def test_a_step_with_a_late_generator_does_not_hold_and_stays_marked():
    found = Model(5_000, generator_rps=2_000).search()
    assert found.confirmed.rate_rps < 2_000
    assert {step.verdict for step in found.steps if step.rate_rps >= 2_000} == {"void"}


@pytest.mark.parametrize(
    ("broken", "verdicts", "factor"),
    [
        ([], ["held", "held"], 1.0),
        ([1], ["held", "not held", "held"], 1.0),
        ([0], ["not held", "held", "held"], 1.0),
        ([0, 1], ["not held", "not held", "held", "held"], 0.95),
        ([0, 2], ["not held", "held", "not held", "held", "held"], 0.95),
    ],
)
def test_a_rate_is_confirmed_in_two_of_three_longer_steps_or_lowered(broken, verdicts, factor):
    plain = Model(1_000)
    num_confirming = len(plain.search().confirming)
    first = len(plain.steps_run) - num_confirming
    found = Model(1_000, hiccups=[first + each for each in broken]).search()
    confirming = [step for step in found.steps if step.phase == "confirm"]
    assert [step.verdict for step in confirming] == verdicts
    assert found.confirmed.rate_rps / confirming[0].rate_rps == pytest.approx(factor, abs=1e-3)
    assert found.confirming == [step for step in confirming if step.rate_rps == found.confirmed.rate_rps]


def test_what_never_holds_for_longer_has_no_knee():
    plain = Model(1_000)
    plain.search()
    found = Model(1_000, hiccups=range(len(plain.steps_run) - 2, 100)).search()
    assert found.confirmed is None
    assert len([step for step in found.steps if step.phase == "confirm"]) == 2 * (1 + len(PLAN.step_down))


def test_a_knee_is_confirmed_again_at_its_rate_or_below():
    model = Model(1_000)
    assert [
        confirm_knee(model.measure, PLAN, rate, model.rest).confirmed.rate_rps for rate in (990, 1_040)
    ] == [
        990,
        988,
    ]
    assert {phase for *_, phase in model.steps_run} == {"confirm"}


def test_a_rate_far_above_the_knee_is_left_after_a_look():
    found = Model(1_000).search()
    far = [step for step in found.steps if step.rate_rps > 1_100]
    assert far
    assert {step.phase for step in far} == {"look"}


def test_a_look_that_met_what_an_overload_left_is_repeated():
    model = Model(1_000)
    looked = []

    def measure(rate_rps, warmup_s, seconds, phase):
        step = model.measure(rate_rps, warmup_s, seconds, phase)
        if phase != "look":
            return step
        looked.append(rate_rps)
        return replace(step, kept_up=step.kept_up and looked.count(rate_rps) > 1)

    assert find_knee(measure, PLAN, clock=lambda: model.now_s, rest=model.rest).confirmed.rate_rps > 950


def test_when_the_budget_is_spent_what_held_is_confirmed():
    found = Model(1_000).search(KneePlan(budget_s=30))
    judged = [(step.rate_rps, step.phase) for step in found.steps if step.phase != "look"]
    assert judged == [(600, "search"), (600, "confirm"), (600, "confirm")]
    assert found.confirmed.rate_rps == 600


def test_no_rate_above_the_highest_is_tried():
    found = Model(1e9).search(KneePlan(highest_rps=1_000))
    assert 1_000 / PLAN.resolution <= found.confirmed.rate_rps == max(rates(found)) <= 1_000


def test_a_search_takes_less_than_four_minutes():
    for knee_rps in (12, 45, 1_000, 3_000):
        model = Model(knee_rps)
        model.search()
        assert model.now_s < 240
