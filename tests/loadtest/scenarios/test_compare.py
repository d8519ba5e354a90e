"""Tests of `compare`: turns against stubs of services, and their ratios and verdict."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import numpy as np
import pytest

from loadtest.measure.measure import RequestLog
from loadtest.measure.service import Outcome
from loadtest.scenarios import bench, compare
from loadtest.scenarios.bench import Bench
from loadtest.scenarios.compare import (
    LOADS,
    Load,
    alternate,
    compare_verdict,
    describe,
    ratio,
    window,
)
from loadtest.targets import processes
from loadtest.targets.services import TargetService, free_port
from loadtest.workload.profiles import load_slo
from tests.support.loadtest_command import left

BODY = json.dumps({"viewer": "ann", "candidates": ["a"]}).encode()
FULL, SHED = Outcome("full", ok=True, full=True), Outcome("HTTP 429", ok=False)
# Small service that answers rankings of 55 candidates in full.
SERVER = """
import http.server, json, sys
body = json.dumps({"rung": "full", "model": "m", "ranking": [{"score": 0.5}] * 55}).encode()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
CLOSED, OPEN = LOADS["closed loop × 8"], LOADS["open loop, 10/s"]


def requests(num, late_ms=0.0, seconds=2, num_shed=0):
    """Return requests at even times, answered after 5 ms; the late ones are due in second 0."""
    log = RequestLog()
    for number, at_s in enumerate(np.arange(num) * seconds / num):
        late = late_ms if at_s < 1 else 0.0
        log.add(at_s, late, 5.0 + late, FULL if number < num - num_shed else SHED, 1)
    return log.requests()


def numbers(num, load, late_ms=0.0, seconds=2, num_shed=0):
    """Return the numbers of such requests."""
    return window(requests(num, late_ms, seconds, num_shed), load, seconds, 10.0, {})


def turn(rps, kept_up=True, late_s=0):
    numbers = {"seconds": 2, "late_s": late_s, "kept_up": kept_up, "rps": rps, "p50_ms": 5.0, "p99_ms": 9.0}
    return {**numbers, "ended": {"full": 4}, "cpu_used_us": {"Scorer": 300, "rest": 100}}


@pytest.fixture
def taken_turns(monkeypatch):
    """Return a function that lets services take turns: the order of windows, and the numbers."""
    order = []

    def take(at, rounds, kept_up=True):
        def offer_window(bench, service, load, seconds):
            order.append((service.name, load, seconds))
            return turn(10.0 if service.name == "fastapi" else 20.0, kept_up)

        monkeypatch.setattr(compare, "offer_window", offer_window)
        monkeypatch.setattr(compare, "await_full_answer", lambda *_: None)
        made = Bench(None, None, 1, load_slo(), [BODY], lambda line: None, 0.0)
        services = [TargetService(name, "", (), {}) for name in ("fastapi", "tabrank")]
        return order, alternate(made, services, at, rounds, 6)

    return take


@pytest.mark.parametrize("at", ["closed loop × 1", "open loop, 10/s"])
def test_each_service_is_measured_in_rotating_order(taken_turns, at):
    order, found = taken_turns(at, 3)
    names = ["fastapi", "tabrank", "tabrank", "fastapi", "fastapi", "tabrank"]
    assert order == [(name, LOADS[at], 6) for name in names]
    assert {name: one["rps"] for name, one in found["services"].items()} == {"fastapi": 10.0, "tabrank": 20.0}
    assert found["ratios"]["rps"]["median"] == 2.0


def test_a_service_that_does_not_keep_up_is_measured_once(taken_turns):
    order, found = taken_turns("open loop, 100/s", 3, kept_up=False)
    assert [name for name, *_ in order] == ["fastapi", "tabrank"]
    assert found["services"]["tabrank"]["ended"] == {"full": 4}
    assert found["ratios"]["rps"] is None


@pytest.mark.integration
@pytest.mark.no_ray
def test_all_services_run_at_once_and_nothing_is_left(bench_work, tmp_path, monkeypatch):
    def small(name):
        port = free_port()
        return TargetService(
            name, f"http://127.0.0.1:{port}", (sys.executable, "-c", SERVER, str(port)), dict(os.environ)
        )

    monkeypatch.setattr(compare, "fastapi", lambda *_: small("fastapi"))
    monkeypatch.setattr(bench, "tabrank", lambda *_: small("tabrank"))
    monkeypatch.setattr(compare, "LOADS", {"closed loop × 2": Load(connections=2)})
    monkeypatch.setattr(compare, "WARM_UP_S", 1)
    monkeypatch.setattr(processes, "SETTLE_S", 0.0)
    running = []
    report = compare.run_compare(
        bench_work, tmp_path / "out", lambda _: running.append(left(bench_work)), seconds=1, rounds=1
    )
    assert len(running[-1]) == 2
    assert left(bench_work) == []
    assert (report["verdict"], report["reasons"]) == ("held", [])
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    for found in report["loads"]["closed loop × 2"]["services"].values():
        assert len(found["windows"]) == 1
        assert found["cpu_us"]["all"] == found["cpu_us"]["rest"] > 0
        assert found["rps"] > 10


def test_a_second_with_a_late_generator_is_excluded_and_counted():
    found = numbers(200, OPEN, late_ms=50.0)
    assert (found["late_s"], found["rps"], found["p50_ms"]) == (1, 100.0, 5.0)
    assert found["ended"] == {"full": 200}
    never = numbers(10, OPEN, late_ms=2_000.0, seconds=1)
    assert not never["kept_up"]
    assert (never["late_s"], never["rps"], never["p99_ms"]) == (1, None, None)


def test_only_full_answers_in_time_count_as_kept_up():
    assert numbers(200, OPEN, num_shed=20)["kept_up"]
    behind = numbers(200, OPEN, num_shed=22)
    assert (behind["kept_up"], behind["rps"]) == (False, 89.0)
    assert numbers(200, CLOSED, num_shed=22)["kept_up"]


def test_numbers_of_a_service_are_medians_and_cpu_per_full_answer():
    found = describe([turn(100.0), turn(130.0), turn(None, late_s=2), turn(110.0)])
    assert (found["rps"], found["late_s"], found["ended"]) == (110.0, 2, {"full": 16})
    assert found["cpu_us"] == {"all": 100.0, "Scorer": 75.0, "rest": 25.0}
    assert describe([turn(None)])["rps"] is None


def test_a_ratio_is_taken_round_by_round_and_means_nothing_if_it_varies_too_much():
    ours = [turn(150.0), turn(300.0), turn(160.0)]
    even = ratio(ours, [turn(100.0), turn(200.0), turn(100.0)], "rps")
    assert even == {"median": 1.5, "lowest": 1.5, "highest": 1.6, "meaningless": False}
    assert ratio(ours, [turn(100.0)] * 3, "rps")["meaningless"]
    assert ratio(ours, [turn(100.0, kept_up=False)], "rps") is None
    assert ratio(ours, [turn(None)] * 3, "rps") is None


def test_the_verdict_depends_on_full_answers_and_on_the_generator():
    def at(load, *windows):
        return {**asdict(load), "services": {"tabrank": describe(windows)}}

    good = {"closed loop × 8": at(CLOSED, turn(90.0)), "open loop, 10/s": at(OPEN, turn(10.0))}
    assert compare_verdict(good) == ("held", [])
    verdict, reasons = compare_verdict(good | {"closed loop × 1": at(CLOSED, turn(0.0))})
    assert (verdict, reasons) == ("not held", ["tabrank was not measured at closed loop × 1"])
    behind = at(OPEN, turn(None, kept_up=False))
    assert compare_verdict(good | {"open loop, 900/s": behind}) == ("held", [])
    late = at(OPEN, turn(10.0), turn(10.0, late_s=1))
    verdict, reasons = compare_verdict(good | {"open loop, 10/s": late})
    assert verdict == "void"
    assert "late in 1 of 4 open-loop seconds" in reasons[0]
