"""Tests of the drift and growth of a service, on synthetic loads."""

from __future__ import annotations

import pytest

from loadtest.report.run import Footprint
from loadtest.scenarios.soak import describe, growth, judge
from loadtest.workload.profiles import load_slo
from tests.support.load_results import CLOSED, Offering

SLO = load_slo()


def footprints(memory_mib=lambda i: 500.0, files=lambda i: 300):
    return [Footprint(i * 5.0, memory_mib(i), files(i), 14) for i in range(60)]


def found(offering=None, seen=None):
    return describe((offering or Offering(30)).requests, seen or footprints(), 30.0)


def test_a_level_service_holds():
    numbers = found()
    assert (numbers["p99_drift"], numbers["memory_growth"], numbers["files_growth"]) == (
        0,
        pytest.approx(0),
        pytest.approx(0),
    )
    assert judge(numbers, SLO) == ("held", [])


def test_a_p99_that_drifts_up_does_not_and_one_that_falls_does():
    up = found(Offering(30).between(20, 30, latency_ms=11.2))
    assert judge(up, SLO)[1] == ["the p99 drifted by +12.0% from the first third to the last (limit 10%)"]
    assert judge(found(Offering(30).between(20, 30, latency_ms=5.0)), SLO)[0] == "held"


def test_growth_is_that_of_a_line_so_that_one_look_at_a_bad_moment_is_none():
    assert growth([100.0 + i for i in range(11)]) == pytest.approx(0.1)
    assert abs(growth([100.0] * 30 + [130.0] + [100.0] * 30)) < 0.01
    assert growth([1.0, 2.0]) is None


def test_what_grows_is_named_and_the_warm_up_is_not_growth():
    leaks = footprints(memory_mib=lambda i: 500.0 + i, files=lambda i: 300 + i)
    assert [reason.split(" after")[0] for reason in judge(found(seen=leaks), SLO)[1]] == [
        "memory grew by +9.2%",
        "the number of open files grew by +15.1%",
    ]
    assert judge(found(seen=footprints(memory_mib=lambda i: 300.0 + 50 * min(i, 10))), SLO)[0] == "held"


def test_a_failed_request_and_a_look_too_few_do_not_hold():
    numbers = found(Offering(30).between(5, 5.01, CLOSED), footprints()[:2])
    assert [reason.split(";")[0] for reason in judge(numbers, SLO)[1]] == [
        "memory has too few samples",
        "the number of open files has too few samples",
        "1 of 3,000 requests failed: 1 connection closed",
    ]


def test_a_late_generator_makes_it_void():
    assert judge(found(Offering(30).between(0, 30, late_ms=20.0)), SLO)[0] == "void"
