"""What the run over fake nodes is held to have shown."""

from __future__ import annotations

import pytest

from loadtest.report.scaling import told
from loadtest.scenarios.scaling.nodes import judge_nodes
from loadtest.scenarios.scaling.step import Plan

PLAN = Plan(before_s=3, held_s=10, after_s=12)
GOOD = [1.0] * 3 + [1.0] * 4 + [2.0] * 13 + [1.0] * 5


def judged(nodes, **changes):
    report = {"requests": 100, "errors": 0, "error_kinds": {}, "phases": [], "steps": []}
    return judge_nodes(report | changes, [{"t_s": float(i), "nodes": n} for i, n in enumerate(nodes)], PLAN)


def test_a_node_that_comes_and_goes_holds():
    found = judged(GOOD)
    assert (found["held"], found["reasons"]) == (True, [])
    assert (found["node_up_s"], found["node_gone_s"]) == (4, 7)
    assert (found["nodes_before"], found["nodes_most"], found["nodes_after"]) == (1, 2, 1)
    assert told("nodes", found) == (
        "0 of 100 requests failed; a node 4 s after the step, gone 7 s after its end"
    )


@pytest.mark.parametrize(
    ("nodes", "changes", "said"),
    [
        ([1.0] * 25, {}, "no node came with the load"),
        ([None] * 25, {}, "no node came with the load"),
        (GOOD[:20] + [2.0] * 5, {}, "the node that came did not go when the load was over"),
        (GOOD, {"errors": 2, "error_kinds": {"reset": 2}}, "2 of 100 requests failed: 2 reset"),
    ],
)
def test_what_does_not_hold_is_said(nodes, changes, said):
    found = judged(nodes, **changes)
    assert not found["held"]
    assert found["reasons"] == [said]
