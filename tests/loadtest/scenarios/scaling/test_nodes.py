"""Tests of the verdict on the scaling of nodes."""

from __future__ import annotations

import pytest
from offers import moment

from loadtest.report.series import describe_part
from loadtest.scenarios.scaling.parts import StepPlan, judge_nodes

PLAN = StepPlan(before_s=3, held_s=10, after_s=12)
GOOD = [1] * 3 + [1] * 4 + [2] * 13 + [1] * 5


def judged(nodes, **changes):
    report = {"requests": 100, "errors": 0, "error_kinds": {}, "phases": [], "steps": []}
    moments = [moment(second, nodes=number) for second, number in enumerate(nodes)]
    return judge_nodes(report | changes, moments, PLAN)


def test_a_node_that_comes_and_goes_holds():
    found = judged(GOOD)
    assert (found["held"], found["reasons"]) == (True, [])
    assert (found["node_up_s"], found["node_gone_s"]) == (4, 7)
    assert (found["nodes_before"], found["nodes_most"], found["nodes_after"]) == (1, 2, 1)
    assert describe_part("nodes", found) == (
        "0 of 100 requests failed; node added 4 s after the step, removed 7 s after its end"
    )


@pytest.mark.parametrize(
    ("nodes", "changes", "message"),
    [
        ([1] * 25, {}, "no node was added under the load"),
        ([None] * 25, {}, "no node was added under the load"),
        (GOOD[:20] + [2] * 5, {}, "the added node was not removed after the load"),
        (GOOD, {"errors": 2, "error_kinds": {"reset": 2}}, "2 of 100 requests failed: 2 reset"),
    ],
)
def test_what_does_not_hold_is_said(nodes, changes, message):
    found = judged(nodes, **changes)
    assert not found["held"]
    assert found["reasons"] == [message]
