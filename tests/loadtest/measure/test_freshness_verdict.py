"""Tests of the verdict on freshness."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from loadtest.measure.measure import RequestLog, measure
from loadtest.measure.service import Outcome
from loadtest.measure.verdict import judge_freshness
from loadtest.report.freshness import event_numbers, freshness_numbers

OK = Outcome("full", True, True)


def record(num=1000, latency_ms=5.0, slow=0, slow_ms=0.0, bad=0, seconds=10.0, scored=10, late_ms=1.0):
    """Return `num` rows; the last `slow` are slow, and the first `bad` failed."""
    made = RequestLog()
    for i in range(num):
        outcome = Outcome("HTTP 503", False) if i < bad else OK
        made.add(
            i * seconds / num,
            late_ms,
            slow_ms if i >= num - slow else latency_ms,
            outcome,
            scored * outcome.ok,
        )
    return made.requests()


def judged(rank=None, events=None, **kinds):
    probes = {kind: kinds.get(kind, record(100, 200.0)) for kind in ("candidate", "viewer")}
    report = {
        "freshness_ms": freshness_numbers(probes),
        "rank": {"target_rps": 100, **asdict(measure(rank or record(), 10.0))},
        "events": event_numbers(1000, 10, measure(events or record(), 10.0)),
    }
    return judge_freshness(report, late_limit_ms=10)


def test_what_is_within_its_limits_holds():
    assert judged() == ("held", [])


def test_one_in_a_hundred_may_be_slower_than_a_second_and_two_may_not():
    assert judged(viewer=record(100, 200.0, slow=2, slow_ms=1500.0))[0] == "held"
    verdict, reasons = judged(viewer=record(100, 200.0, slow=3, slow_ms=1500.0))
    assert (verdict, reasons) == ("not held", ["the p99 of freshness is 1500 ms; it must be below 1000 ms"])


def test_the_limit_itself_does_not_hold():
    assert judged(viewer=record(100, 1000.0))[0] == "not held"


def test_events_that_never_showed_are_the_slowest():
    assert judged(viewer=record(100, 200.0, bad=2))[0] == "held"
    verdict, reasons = judged(viewer=record(100, 200.0, bad=3))
    assert (verdict, reasons) == (
        "not held",
        ["3 of 200 probes never showed in a ranking (3 HTTP 503)"],
    )


def test_a_few_samples_say_nothing():
    verdict, reasons = judged(viewer=record(10, 200.0), candidate=record(89, 200.0))
    assert verdict == "not held"
    assert reasons == ["there were only 99 probes, and at least 100 are needed; raise --duration"]


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        ({"rank": record(bad=1)}, "1 of 1000 rankings failed (1 HTTP 503)"),
        (
            {"rank": record(940)},
            "94 rankings/s were answered, but at least 95% of the target of 100 are needed",
        ),
        (
            {"events": record(bad=60)},
            "940 events/s were acknowledged, but at least 95% of the target of 1000 are needed (60 HTTP 503)",
        ),
    ],
)
def test_the_load_must_have_been_there(load, reason):
    assert judged(**load) == ("not held", [reason])


def test_a_few_posts_may_fail_as_long_as_the_rate_is_there():
    assert judged(events=record(bad=40))[0] == "held"


@pytest.mark.parametrize("load", ["rank", "events"])
def test_a_late_generator_says_nothing_of_the_service(load):
    verdict, reasons = judged(**{load: record(late_ms=20.0)})
    assert verdict == "void"
    assert "the load generator itself was late" in reasons[0]
