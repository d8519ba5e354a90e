"""Tests of exact percentiles, and of the numbers of a window."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.measure.measure import RequestLog, measure, percentile
from loadtest.measure.service import Outcome

FULL = Outcome("full", True, True)
FALLBACK = Outcome("fallback", True, False)
DOWN = Outcome("HTTP 503", False)


def test_one_slow_request_in_a_hundred_leaves_the_p99_at_the_limit():
    assert percentile(np.array([100.0] * 99 + [5000.0]), 0.99) == 100.0


def test_two_slow_requests_in_a_hundred_break_it():
    assert percentile(np.array([100.0] * 98 + [100.001] * 2), 0.99) == 100.001


def test_a_latency_between_the_steps_of_a_histogram_is_kept():
    assert percentile(np.array([104.9] * 100), 0.99) == 104.9


def test_a_failed_request_ranks_after_every_answer():
    latencies = np.array([1.0, 2.0, 0.1, 3.0])
    ok = np.array([True, True, False, True])
    assert percentile(latencies, 0.75, ok) == 3.0
    assert percentile(latencies, 0.76, ok) is None


def test_without_requests_there_is_no_percentile():
    assert percentile(np.array([]), 0.5) is None


@given(
    st.lists(st.tuples(st.floats(0, 1000), st.booleans()), min_size=1, max_size=300),
    st.sampled_from([0.5, 0.9, 0.99, 1.0]),
    st.floats(0, 1000),
)
def test_a_percentile_holds_exactly_if_that_share_was_answered_in_time(rows, share, limit):
    latencies = np.array([ms for ms, _ in rows])
    ok = np.array([good for _, good in rows])
    value = percentile(latencies, share, ok)
    within = int(np.sum(ok & (latencies <= limit)))
    assert (value is not None and value <= limit) == (within >= math.ceil(round(share * len(rows), 6)))


def recorded(*rows):
    log = RequestLog()
    for at_s, latency_ms, outcome, scored in rows:
        log.add(at_s, 1.0, latency_ms, outcome, scored)
    return log.requests()


def test_the_warm_up_counts_for_nothing():
    measured = measure(recorded((-1.0, 900.0, DOWN, 0), (0.0, 5.0, FULL, 55)), 1.0)
    assert (measured.requests, measured.errors, measured.max_ms) == (1, 0, 5.0)


def test_an_answer_after_the_end_counts_for_latency_but_not_for_the_rate():
    measured = measure(recorded((0.5, 10.0, FULL, 55), (0.9, 300.0, FULL, 55)), 1.0)
    assert (measured.rps, measured.candidates_per_s, measured.max_ms) == (1.0, 55.0, 300.0)


def test_an_answer_to_the_warm_up_in_the_window_counts_for_the_rate():
    assert measure(recorded((-0.1, 200.0, FULL, 7), (0.5, 1.0, FULL, 7)), 1.0).rps == 2.0


def test_rungs_errors_and_shares_are_counted():
    rows = [(0.1, 5.0, FULL, 55)] * 6 + [(0.2, 5.0, FALLBACK, 0)] * 2 + [(0.3, 5.0, DOWN, 0)] * 2
    rows += [(0.4, 5.0, Outcome("full", True, False), 0)] * 2
    measured = measure(recorded(*rows), 2.0)
    assert measured.rungs == {"full": 8, "fallback": 2}
    assert measured.error_kinds == {"HTTP 503": 2}
    assert (measured.requests, measured.errors, measured.heuristic) == (12, 2, 2)
    assert measured.full_share == 0.6
    assert measured.rps == 5.0
    assert measured.candidates_per_s == 6 * 55 / 2


def test_lateness_is_the_p99_of_all_requests_of_the_window():
    log = RequestLog()
    for number in range(100):
        log.add(0.5, float(number), 1.0, DOWN, 0)
    assert measure(log.requests(), 1.0).generator_late_ms_p99 == 98.0


def test_rows_can_be_read_from_the_middle():
    log = RequestLog()
    log.add(0.0, 0.0, 1.0, FULL, 1)
    log.add(1.0, 0.0, 2.0, DOWN, 0)
    rows = log.requests(1)
    assert rows.at_s.tolist() == [1.0]
    assert rows.named_counts() == {DOWN.name: 1}
    # A view of the columns would forbid this call.
    log.add(2.0, 0.0, 3.0, FULL, 1)
    assert len(log.requests().ok) == 3


def test_nothing_answered_measures_nothing_and_does_not_fail():
    measured = measure(recorded((0.0, 1.0, DOWN, 0)), 1.0)
    assert (measured.p50_ms, measured.full_share, measured.rps) == (None, 0.0, 0.0)
    assert measured.requests == pytest.approx(1)
