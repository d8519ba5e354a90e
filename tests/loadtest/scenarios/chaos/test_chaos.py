"""Test of one fault on the real service."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from loadtest.scenarios.bench import Bench
from loadtest.scenarios.chaos import run as chaos
from loadtest.scenarios.chaos.fault import ONE
from loadtest.scenarios.chaos.kills import NOTHING, Kill
from loadtest.targets import processes
from loadtest.targets.running import CONTROLLER

pytestmark = [pytest.mark.integration, pytest.mark.proof]

ROOT = Path(__file__).parents[4]
RATE_RPS = 40.0


class Controller(Kill):
    """Killed Serve controller, watched only for a moment."""

    def __init__(self):
        super().__init__("controller", "kill -9 the Serve controller", CONTROLLER, NOTHING, ONE)
        self.watch_s = 4.0


@pytest.fixture(scope="module")
def run(bench_work):
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as up:
        patch.setattr(processes, "SETTLE_S", 0.0)
        patch.setattr(chaos, "BEFORE_S", 4.0)
        with Bench.locked(bench_work, ROOT / "cluster.yaml", print) as bench:
            yield chaos.ChaosRun(bench, RATE_RPS, up)


def test_a_killed_controller_is_replaced_and_no_request_fails(run):
    fault, lines = Controller(), {}
    target = run.provide_service(fault)
    before = target.one(CONTROLLER)
    found = chaos.run_fault(run, fault, lines)
    assert target.one(CONTROLLER).pid != before.pid
    assert (found["rate_rps"], found["failed"], found["failed_first"]) == (RATE_RPS, 0, 0)
    assert found["orphans"] == []
    assert found["verdict"] == "held"
    assert found["requests"] == pytest.approx(8 * RATE_RPS, rel=0.2)
    assert sum(moment.offered_rps for moment in lines["controller"]) > 0
