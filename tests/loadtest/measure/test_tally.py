"""Tests of the verdict on a Locust run, from the statistics that Locust keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from loadtest.measure.service import Outcome
from loadtest.measure.tally import bucket_ms, entry_name, judge_entries
from loadtest.workload.profiles import load_slo

FULL = Outcome("full", ok=True, full=True)


def entry(outcome, counts):
    """Return Locust's entry of an outcome, with the number of its requests by their ms."""
    times = {bucket_ms(ms): num for ms, num in counts.items()}
    failures = 0 if outcome.ok else sum(counts.values())
    return SimpleNamespace(name=entry_name(outcome), num_failures=failures, response_times=times)


@pytest.mark.parametrize(
    ("parts", "verdict", "reason"),
    [
        ([(FULL, {50.0: 99, 900.0: 1})], "held", ""),
        ([(FULL, {50.0: 98, 100.04: 2})], "not held", "p99 is 100.100 ms"),
        ([(FULL, {5.0: 99}), (Outcome("HTTP 503", ok=False), {1.0: 1})], "not held", "1 HTTP 503"),
        ([(FULL, {5.0: 99}), (Outcome("fallback", ok=True), {1.0: 1})], "not held", "99.000% of"),
        ([(FULL, {5.0: 99}), (Outcome("full", ok=True), {1.0: 1})], "not held", "from a heuristic"),
        ([], "void", "no request ended"),
    ],
)
def test_the_verdict_is_that_of_the_slo_on_all_requests(parts, verdict, reason):
    measured, found, reasons = judge_entries([entry(*part) for part in parts], load_slo())
    assert found == verdict
    assert reason in " ".join(reasons)
    num = sum(sum(counts.values()) for _, counts in parts)
    assert (measured.requests if measured else 0) == num
