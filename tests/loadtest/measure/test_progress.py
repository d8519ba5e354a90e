"""Tests of the progress line."""

from __future__ import annotations

import re

import gevent

from loadtest.generator import dispatcher
from loadtest.generator.dispatcher import progress_line, show_progress
from loadtest.measure.measure import RequestLog
from loadtest.measure.service import Outcome

FULL = Outcome("full", True, True)


def rows(*latencies, failed=0):
    log = RequestLog()
    for latency_ms in latencies:
        log.add(1.0, 0.0, latency_ms, FULL, 55)
    for _ in range(failed):
        log.add(1.0, 0.0, 1.0, Outcome("HTTP 503", False), 0)
    return log.requests()


def test_a_line_says_seconds_rate_percentiles_and_errors():
    line = progress_line(rows(*[8.11] * 98, 21.4, 21.4), 10.0, 12.0, 12.0)
    assert line == "12 s  50 req/s  p50 8.1  p99 21.4 ms  errors 0"


def test_a_line_of_the_warm_up_says_so():
    line = progress_line(rows(8.11), 4.0, 5.0, 10.0)
    assert line == "5 s  1 req/s  p50 8.1  p99 8.1 ms  errors 0  (warm-up)"


def test_a_percentile_that_failures_keep_from_being_reached_is_a_dash():
    assert progress_line(rows(5.0, failed=1), 0.0, 1.0, 0.0) == "1 s  1 req/s  p50 5.0  p99 – ms  errors 1"


def test_a_second_without_answers_has_a_line_too():
    assert progress_line(rows(), 0.0, 1.0, 0.0) == "1 s  0 req/s  p50 –  p99 – ms  errors 0"


def test_progress_goes_to_stderr_with_the_requests_since_the_last_line(monkeypatch, capfd):
    monkeypatch.setattr(dispatcher, "PROGRESS_S", 0.05)
    log = RequestLog()
    showing = gevent.spawn(show_progress, log, 60.0)
    log.add(0.0, 0.0, 8.0, FULL, 55)
    gevent.sleep(0.12)
    showing.kill()
    lines = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"0 s  \d+ req/s  p50 8\.0  p99 8\.0 ms  errors 0  \(warm-up\)", lines[0])
    assert lines[1].startswith("0 s  0 req/s  p50 –")
