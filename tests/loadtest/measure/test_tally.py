"""Tests of the tally of a Locust run: its verdict, its buckets and its merging."""

from __future__ import annotations

import pytest

from loadtest.measure.service import Ended, Outcome
from loadtest.measure.tally import Tally
from loadtest.workload.profiles import load_slo

SLO = load_slo()
FULL = Outcome("full", ok=True, full=True)


def tallied(*parts):
    """Return a tally of so many requests of an outcome, with their latency and lateness."""
    tally = Tally()
    for number, outcome, latency_ms, late_ms in parts:
        for _ in range(number):
            tally.keep(Ended(1.0, late_ms, latency_ms, outcome, 55, 100))
    return tally


@pytest.mark.parametrize(
    ("parts", "verdict", "reason"),
    [
        ([(99, FULL, 50.0, 1.0), (1, FULL, 900.0, 1.0)], "held", ""),
        ([(98, FULL, 50.0, 1.0), (2, FULL, 100.04, 1.0)], "not held", "p99 is 100.100 ms"),
        ([(99, FULL, 5.0, 1.0), (1, Outcome("HTTP 503", ok=False), 1.0, 1.0)], "not held", "1 HTTP 503"),
        ([(99, FULL, 5.0, 1.0), (1, Outcome("fallback", ok=True), 1.0, 1.0)], "not held", "99.000% of"),
        ([(99, FULL, 5.0, 1.0), (1, Outcome("full", ok=True), 1.0, 1.0)], "not held", "from a heuristic"),
        ([(98, FULL, 5.0, 1.0), (2, FULL, 5.0, 10.1)], "void", "the load generator itself was late"),
        ([], "void", "no request ended"),
    ],
)
def test_the_verdict_is_that_of_the_slo_on_all_requests(parts, verdict, reason):
    measured, found, reasons = tallied(*parts).judged(SLO)
    assert found == verdict
    assert reason in " ".join(reasons)
    assert (measured.requests if measured else 0) == sum(number for number, *_ in parts)


def test_the_requests_of_workers_count_once_for_their_master():
    master = Tally()
    workers = [tallied((50, FULL, 5.0, 1.0)), tallied((50, Outcome("HTTP 429", ok=False), 1.0, 1.0))]
    for _ in range(2):
        for worker in workers:
            # Messages between Locust's processes hold lists.
            master.add([list(row) for row in worker.take()])
    measured, verdict, _ = master.judged(SLO)
    assert (measured.requests, measured.errors, verdict) == (100, 50, "not held")


def test_a_new_test_begins_with_no_request():
    tally = tallied((5, FULL, 5.0, 1.0))
    tally.clear()
    assert tally.judged(SLO)[1] == "void"
