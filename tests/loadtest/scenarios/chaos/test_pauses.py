"""Tests of the pauses: their real times, the answers around them, the verdict on each length."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from loadtest.measure.service import Outcome
from loadtest.report.chaos import fault_line, write_chaos
from loadtest.scenarios.chaos import pauses
from loadtest.scenarios.chaos import run as chaos
from loadtest.scenarios.chaos.fault import Injected
from loadtest.scenarios.chaos.pauses import Pauses, describe_pauses, pauses_line
from loadtest.scenarios.chaos.run import run_fault, select_faults
from loadtest.targets.running import Target
from loadtest.workload.profiles import CANDIDATES, load_slo
from tests.support.load_results import CLOSED, FALLBACK, REFUSED, Offering

PARTIAL = Outcome("partial", True, False)


def at(*begins_s, length_s):
    return np.array([(begun_s, begun_s + length_s) for begun_s in begins_s])


def found(offering, length_s=0.2, length_ms=200):
    """Return the numbers of two pauses, at seconds 3 and 6 of the load; the series ends at 9."""
    return describe_pauses(offering.offered, length_ms, at(3.0, 6.0, length_s=length_s))


@pytest.fixture(autouse=True)
def _two_pauses(monkeypatch):
    monkeypatch.setattr(pauses, "NUM", 2)


def test_a_series_of_full_answers_holds_and_counts_its_own_requests_only():
    numbers = found(Offering(12).between(3.0, 3.2, latency_ms=150.0))
    assert numbers["held"]
    assert (numbers["requests"], numbers["full"]) == (600, 600)
    assert (numbers["p50_ms"], numbers["p99_ms"]) == (10.0, 150.0)
    before_and_after = Offering(12).between(0, 3, CLOSED).between(9, 12, REFUSED).failed_first(2.9, 9.1)
    assert found(before_and_after)["held"]


@pytest.mark.parametrize("less", [FALLBACK, PARTIAL])
def test_answers_may_be_less_than_full_within_a_pause_and_two_and_a_half_lengths_after_it(less):
    numbers = found(Offering(12).between(3.0, 3.701, less).between(6.0, 6.701, less))
    assert (numbers["held"], numbers["inside"], numbers["outside"]) == (True, 142, 0)
    late = found(Offering(12).between(3.0, 3.72, less))
    assert (late["held"], late["inside"], late["outside"]) == (False, 71, 1)


def test_a_pause_of_less_than_100_ms_excuses_nothing():
    numbers = found(Offering(12).between(3.0, 3.05, FALLBACK), length_s=0.05, length_ms=50)
    assert (numbers["held"], numbers["inside"], numbers["outside"]) == (False, 0, 5)


def test_the_real_length_of_a_pause_counts():
    offering = Offering(12).between(3.0, 3.42, FALLBACK)
    assert found(offering, length_s=0.12, length_ms=50)["held"]
    assert found(offering, length_s=0.1, length_ms=100)["outside"] == 6


def test_a_request_that_a_pause_finds_in_flight_is_inside():
    before = Offering(12).between(5.99, 6.0, FALLBACK, latency_ms=210.0)
    assert (found(before)["held"], found(before)["inside"]) == (True, 1)
    assert not found(Offering(12).between(5.99, 6.0, FALLBACK, latency_ms=5.0))["held"]


def test_a_refusal_that_a_retry_saved_does_not_hold():
    numbers = found(Offering(12).failed_first(3.3, 3.4, kind="HTTP 429"))
    assert (numbers["held"], numbers["refused"], numbers["failed"]) == (False, 2, {})


@pytest.mark.parametrize("kind", ["HTTP 503", "connection closed"])
def test_a_first_try_that_fails_does_not_hold(kind):
    numbers = found(Offering(12).failed_first(3.3, kind=kind))
    assert (numbers["held"], numbers["refused"], numbers["failed"]) == (False, 0, {kind: 1})


def test_a_request_that_fails_at_both_tries_counts_once():
    offering = Offering(12).between(3.3, 3.31, REFUSED).between(4.0, 4.02, CLOSED)
    numbers = found(offering.failed_first(3.3, kind="HTTP 429").failed_first(4.0))
    assert (numbers["refused"], numbers["failed"]) == (1, {"connection closed": 2})
    assert numbers["inside"] == numbers["outside"] == 0


def test_the_line_of_a_length_has_its_numbers():
    offering = Offering(12).between(3.0, 3.1, FALLBACK).between(5, 5.04, FALLBACK).between(7, 7.02, CLOSED)
    assert pauses_line(found(offering.failed_first(3.3, kind="HTTP 429"))) == (
        "2 pauses of 200 ms not held: 600 requests, 584 full, 10 not full in excused times, "
        "4 not full at other times, 1 × 429, 2 connection closed failed, p50 10.0 ms, p99 10.0 ms"
    )
    most_failed = found(Offering(12).between(3, 5, CLOSED))
    assert pauses_line(most_failed).endswith("p50 10.0 ms, p99 not reached")


def measured(fault, offering, zero_s):
    """Return the numbers of each length, and the reasons of the fault."""
    numbers, reasons = fault.measured(Injected(offering.offered, zero_s, None))
    return numbers["pauses"], reasons


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as popen:
        yield psutil.Process(popen.pid)
        popen.kill()


def test_the_process_is_stopped_within_the_recorded_times_and_runs_between_them(monkeypatch, process):
    monkeypatch.setattr(pauses, "LENGTHS_MS", (50, 100))
    monkeypatch.setattr(pauses, "EVERY_S", 0.2)
    seen, over = [], threading.Event()

    def look():
        while not over.wait(0.005):
            begun_s = time.monotonic()
            status = process.status()
            seen.append((begun_s, time.monotonic(), status == psutil.STATUS_STOPPED))

    watcher = threading.Thread(target=look)
    watcher.start()
    fault, zero_s = Pauses(), time.monotonic()
    fault.inject(SimpleNamespace(one=lambda role: process))
    over.set()
    watcher.join()
    series = measured(fault, Offering(2).between(0.4, 0.45, FALLBACK), zero_s)[0]
    real = [(begun_s + zero_s, ended_s + zero_s) for one in series for begun_s, ended_s in one["pauses_s"]]
    lengths_s = [ended_s - begun_s for begun_s, ended_s in real]
    assert [one["length_ms"] for one in series] == [50, 100]
    assert all(real_s >= s - 0.001 for real_s, s in zip(lengths_s, (0.05, 0.05, 0.1, 0.1), strict=True))
    for begun_s, ended_s, stopped in seen:
        # Rounded to milliseconds in the report.
        if stopped:
            assert any(ended_s >= one[0] - 0.001 and begun_s <= one[1] + 0.001 for one in real)
    assert sum(stopped for *_, stopped in seen) >= 4
    assert process.status() != psutil.STATUS_STOPPED


def test_a_pause_every_so_often_is_not_delayed_by_those_before_it(monkeypatch, process):
    clock = SlowClock()
    monkeypatch.setattr(pauses, "time", clock)
    monkeypatch.setattr(pauses, "LENGTHS_MS", (20,))
    monkeypatch.setattr(pauses, "NUM", 4)
    monkeypatch.setattr(pauses, "EVERY_S", 0.1)
    fault = Pauses()
    fault.inject(SimpleNamespace(one=lambda role: process))
    ((one,), _) = measured(fault, Offering(1), 0.0)
    begins_s, ends_s = np.transpose(one["pauses_s"])
    assert ends_s - begins_s == pytest.approx(0.02 + clock.late_s)
    # Each starts late once, and none twice as late as the one before.
    assert begins_s == pytest.approx([0.0, *np.array([0.1, 0.2, 0.3]) + clock.late_s])


class SlowClock:
    """Clock that moves in `sleep` alone, which takes longer than it was asked to."""

    def __init__(self):
        self.now_s, self.late_s = 0.0, 0.015

    def monotonic(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds + self.late_s


def test_only_the_lengths_that_did_not_hold_are_reasons(monkeypatch, process):
    monkeypatch.setattr(pauses, "LENGTHS_MS", (10, 20))
    monkeypatch.setattr(pauses, "EVERY_S", 0.1)
    fault, zero_s = Pauses(), time.monotonic()
    fault.inject(SimpleNamespace(one=lambda role: process))
    # The second series begins after 0.2 s.
    found, (reason,) = measured(fault, Offering(1).between(0.3, 0.38, FALLBACK), zero_s)
    assert [one["held"] for one in found] == [True, False]
    assert reason.startswith("2 pauses of 20 ms not held: ")


class Stubbed(Target):
    """Stub of the service without replicas; `paused` holds the id of a process to pause."""

    def one(self, role):
        assert role == "ray::ServeReplica:spaces:FeatureFetch"
        return psutil.Process(int((self.folder / "paused").read_text()))


@pytest.mark.integration
@pytest.mark.no_ray
def test_a_run_reports_each_length_on_its_page(stub, process, tmp_path, monkeypatch):
    for name, value in (("LENGTHS_MS", (50, 100)), ("EVERY_S", 0.5)):
        monkeypatch.setattr(pauses, name, value)
    for name, value in (("BEFORE_S", 0.5), ("WARM_S", 0.0), ("PAGE_S", 0.0)):
        monkeypatch.setattr(chaos, name, value)
    # A busy machine makes the generator late, which would leave no verdict.
    slo, lines, (fault,) = replace(load_slo(), generator_late_ms_p99=10_000.0), {}, select_faults(["pauses"])
    monkeypatch.setattr(fault, "watch_s", 0.5)
    (tmp_path / "paused").write_text(str(process.pid))
    bodies = [json.dumps({"viewer": "ann", "candidates": ["a"] * CANDIDATES}).encode()]
    stub.rung = "fallback"
    run = SimpleNamespace(
        provide_service=lambda fault: Stubbed(stub.url, tmp_path, "none"),
        rate_rps=lambda *_: 100.0,
        end_service=lambda: None,
        bench=SimpleNamespace(slo=slo, bodies=bodies, emit=lambda line: None),
    )
    found = run_fault(run, fault, lines)
    report = {"verdict": found["verdict"], "faults": [found], "rate_rps": 100.0, "knee_rps": None}
    report |= {"client_timeout_s": 0.25, "machine": {"cores": 2}, "seconds": 28.0}
    write_chaos(tmp_path / "out", report, lines, slo)
    page = (tmp_path / "out" / "report.html").read_text()
    assert report["verdict"] == "not held"
    for one in found["pauses"]:
        assert one["requests"] == pytest.approx(100, abs=30)
        assert one["inside"] + one["outside"] == one["requests"]
        assert f"2 pauses of {one['length_ms']} ms not held: {one['requests']} requests, 0 full" in page
        assert pauses_line(one) in fault_line(found)
