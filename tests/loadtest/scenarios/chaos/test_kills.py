"""Tests of the faults of the supervisor, on a run folder and two plain processes."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack

import psutil
import pytest

from loadtest.errors import LoadtestError
from loadtest.scenarios.chaos.kills import SupervisorKilled
from loadtest.targets.running import Target


class Folder(Target):
    """Run folder without a service; the file `scorer` holds the id of its Scorer process."""

    def one(self, role):
        return psutil.Process(int((self.folder / "scorer").read_text()))


@pytest.fixture
def processes():
    with ExitStack() as stack:
        yield [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
            for _ in range(2)
        ]


@pytest.fixture
def target(tmp_path, processes):
    supervisor, scorer = processes
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "service.json").write_text(json.dumps({"pid": supervisor.pid}))
    (tmp_path / "scorer").write_text(str(scorer.pid))
    return Folder("", tmp_path, "none")


def test_the_supervisor_is_found_and_killed(target, processes):
    fault = SupervisorKilled()
    fault.aim(target)
    fault.inject(target)
    assert processes[0].wait(10) == -9
    with pytest.raises(LoadtestError, match="has no supervisor"):
        fault.aim(target)


def test_a_service_that_is_not_reported_as_unwatched_does_not_hold():
    assert "but not that the service is unwatched" in SupervisorKilled().measured(None)[1][0]
