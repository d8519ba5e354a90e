"""Tests of starting, finding and ending a service, on small ones in plain Python."""

from __future__ import annotations

import http.client
import os
import sys
import textwrap

import pytest

from loadtest.errors import LoadtestError
from loadtest.targets import processes
from loadtest.targets.processes import marker_of, started
from loadtest.targets.running import cpu_by_process
from loadtest.targets.services import TargetService, free_port
from loadtest.targets.workspace import Workspace
from tests.support.loadtest_command import left

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]

BODY = b'{"viewer": "v", "candidates": ["a"]}'
SERVER = """
    import http.server, json, subprocess, sys
    helper = [sys.executable, "-c", "import time; time.sleep(600)"]
    helper = subprocess.Popen(helper, start_new_session=True)
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.dumps({"rung": RUNG, "model": "m", "ranking": [{"score": 0.5}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "SETTLE_S", 0.0)
    return Workspace(tmp_path)


def service(code, rung="full"):
    port = free_port()
    code = textwrap.dedent(code).replace("RUNG", repr(rung))
    start = (sys.executable, "-c", code, str(port))
    return TargetService("small", f"http://127.0.0.1:{port}", start, dict(os.environ))


def test_every_process_of_a_service_is_counted_and_ended(work):
    with started(service(SERVER), work, BODY, 1) as footprint:
        # Its helper runs in a separate session.
        assert footprint.num_processes == 2
        assert footprint.memory_mib > 5
        assert footprint.start_s >= 0
    assert left(work) == []


def test_cpu_time_is_counted_by_process(work):
    busy = "import sys; sys.argv.append('ray::ServeReplica:spaces:Scorer')" + textwrap.dedent(SERVER)
    with started(service(busy), work, BODY, 1):
        found = cpu_by_process(marker_of(work, service(busy)))
    assert sorted(group for group, _ in found) == ["Scorer", "rest"]
    assert all(0 <= used_us < 60e6 for used_us in found.values())


def test_a_service_is_ended_when_what_measures_it_fails(work):
    with pytest.raises(ZeroDivisionError), started(service(SERVER), work, BODY, 1):
        _ = 1 / 0
    assert left(work) == []


def test_what_a_killed_benchmark_left_is_ended_first(work):
    first = service(SERVER)
    outer = started(first, work, BODY, 1)
    outer.__enter__()
    with started(service(SERVER), work, BODY, 1) as footprint:
        assert footprint.num_processes == 2
        with pytest.raises(OSError, match="refused"):
            http.client.HTTPConnection(first.url.removeprefix("http://")).request("GET", "/")
    outer.__exit__(None, None, None)


def test_a_service_that_ends_early_says_why(work):
    with (
        pytest.raises(LoadtestError, match=r"small did not start:\s+no store here"),
        started(service("raise SystemExit('no store here')"), work, BODY, 1),
    ):
        pass


def test_a_service_that_answers_without_its_model_is_not_measured(work, monkeypatch):
    monkeypatch.setattr(processes, "START_S", 1.0)
    with (
        pytest.raises(LoadtestError, match=r"no full answer within 1 s \(last answer: fallback\)"),
        started(service(SERVER, "fallback"), work, BODY, 1),
    ):
        pass
    assert left(work) == []
