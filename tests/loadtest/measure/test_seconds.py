"""Tests of the statistics by second."""

from __future__ import annotations

from loadtest.measure.answer import Outcome
from loadtest.measure.measure import RequestLog
from loadtest.measure.seconds import by_second, to_csv

FULL = Outcome("full", True, True)
DOWN = Outcome("HTTP 503", False)


def run():
    log = RequestLog()
    log.add(-0.5, 0.1, 700.0, FULL, 1)
    log.add(0.2, 0.2, 5.0, FULL, 1)
    log.add(0.3, 0.3, 1.0, DOWN, 0)
    log.add(1.1, 0.4, 8.0, FULL, 1)
    return by_second(log.requests())


def test_requests_count_in_their_due_second_and_answers_on_arrival():
    assert [(row.second, row.requests, row.answered, row.errors) for row in run()] == [
        (-1, 1, 0, 0),
        (0, 2, 2, 1),
        (1, 1, 1, 0),
    ]


def test_a_second_has_its_own_percentiles():
    warmup, first, last = run()
    assert warmup.p50_ms == 700.0
    assert (first.p50_ms, first.p99_ms, first.late_ms_p99) == (5.0, None, 0.3)
    assert last.p99_ms == 8.0


def test_the_csv_leaves_a_percentile_empty_that_was_not_reached():
    assert to_csv(run()).splitlines()[:3] == [
        "second,requests,answered,errors,p50_ms,p90_ms,p99_ms,late_ms_p99",
        "-1,1,0,0,700.000,700.000,700.000,0.100",
        "0,2,2,1,5.000,,,0.300",
    ]
