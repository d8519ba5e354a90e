"""Tests of the verdict on a doubled load."""

from __future__ import annotations

import re

import pytest
from offers import moment

from loadtest.report.series import describe_part
from loadtest.scenarios.scaling.parts import StepPlan, judge_step

PLAN = StepPlan(before_s=3, held_s=20, after_s=3)


def judged(counts, **changes):
    step = {"p99_recovered_s": 6, "full_recovered_s": 7}
    report = {
        "steps": [step | {key: changes.pop(key) for key in list(changes) if key in step}],
        "phases": [],
        "requests": 100,
        "errors": 0,
        "error_kinds": {},
        "generator_late_ms_p99": 1.0,
        "slo": {"generator_late_ms_p99": 10.0},
    }
    moments = [moment(second, replicas={"Scorer": number}) for second, number in enumerate(counts)]
    return judge_step(report | changes, moments, PLAN)


GOOD = [1] * 3 + [1] * 8 + [2] * 12 + [2] * 3


def test_replicas_and_p99_in_time_hold():
    found = judged(GOOD)
    assert (found["held"], found["reasons"], found["void"]) == (True, [], False)
    assert (found["replicas_up_s"], found["replicas_held"], found["replicas_after"]) == (8, 2, 2)
    measured = "more replicas 8 s after the step, p99 within its limit 6 s after it; [1] → 2 → 2 Scorers"
    assert measured in describe_part("step", found)


@pytest.mark.parametrize(
    ("counts", "changes", "message"),
    [
        ([1] * 26, {}, "more replicas ran never after the step"),
        ([1] * 14 + [2] * 12, {}, "more replicas ran 11 s after the step"),
        ([1, 1, *[2] * 9, *[3] * 15], {}, r"replicas changed before the step: \[1, 2\]"),
        (GOOD[:18] + [1] * 8, {}, "a replica was removed while the load was still doubled"),
        (GOOD, {"p99_recovered_s": None}, "the p99 recovered never after the step"),
        (GOOD, {"errors": 3, "error_kinds": {"reset": 3}}, "3 of 100 requests failed: 3 reset"),
    ],
)
def test_what_does_not_hold_is_said(counts, changes, message):
    found = judged(counts, **changes)
    assert not found["held"]
    (reason,) = found["reasons"]
    assert re.search(message, reason)


def test_a_late_generator_voids_only_what_did_not_hold():
    assert judged([1] * 26, generator_late_ms_p99=20.0)["void"]
    assert not judged(GOOD, generator_late_ms_p99=20.0)["void"]
