"""Test the amounts of an outcome's events."""

from __future__ import annotations

import numpy as np
import pytest

from serve.features.outcomes import Outcome
from training.data.amounts import amounts

MINUTE_MS = 60_000
STAY = Outcome("join", 0, until="leave", cap=60.0)


def of(outcome, *events):
    """Return the amounts of events (kind, minute, viewer, candidate, value)."""
    kind, minute, viewer, candidate, value = zip(*events, strict=True)
    ts_ms = np.array(minute) * MINUTE_MS
    return amounts(outcome, np.array(kind), ts_ms, np.array(viewer), np.array(candidate), value).tolist()


def test_an_event_is_one():
    assert of(Outcome("buy", 0), ("buy", 0, 1, 1, 30.0), ("click", 1, 1, 1, None)) == [1, 0]


def test_a_sum_adds_values_up_to_the_cap_and_knows_no_missing_one():
    spend = Outcome("buy", 0, sum="value", cap=100.0, unit="€")
    values = (30.0, 500.0, -5.0, None, None)
    events = [("buy", 0, 1, 1, value) for value in values] + [("click", 0, 1, 1, 7.0)]
    assert of(spend, *events) == pytest.approx([30, 100, 0, np.nan, np.nan, 0], nan_ok=True)


def test_a_stay_lasts_until_the_next_end_of_the_same_viewer_and_candidate():
    found = of(
        STAY,
        ("join", 0, 1, 1, None),
        ("join", 1, 2, 1, None),
        ("leave", 2, 1, 2, None),
        ("click", 3, 1, 1, None),
        ("leave", 5, 1, 1, None),
        ("leave", 9, 2, 1, None),
        ("leave", 11, 2, 1, None),
    )
    assert found == [5, 8, 0, 0, 0, 0, 0]


def test_a_stay_counts_up_to_the_cap():
    assert of(STAY, ("join", 0, 1, 1, None), ("leave", 600, 1, 1, None)) == [60, 0]


def test_a_stay_without_an_end_before_the_next_one_begins_is_unknown():
    found = of(
        STAY,
        ("join", 0, 1, 1, None),
        ("join", 4, 1, 1, None),
        ("leave", 5, 1, 1, None),
        ("join", 6, 1, 1, None),
    )
    assert found == pytest.approx([np.nan, 1, 0, np.nan], nan_ok=True)


def test_the_order_of_events_is_that_of_their_times():
    assert of(STAY, ("leave", 3, 1, 1, None), ("join", 1, 1, 1, None)) == [0, 2]
    # In the same millisecond it is that in which they are given.
    assert of(STAY, ("join", 3, 1, 1, None), ("leave", 3, 1, 1, None)) == [0, 0]
    assert of(STAY, ("leave", 3, 1, 1, None), ("join", 3, 1, 1, None)) == pytest.approx(
        [0, np.nan], nan_ok=True
    )


def test_the_ids_of_viewers_may_be_hashes():
    viewer, candidate = np.array([2**64 - 2] * 2, np.uint64), np.array([5, 5], np.uint64)
    assert amounts(STAY, np.array(["join", "leave"]), [0, MINUTE_MS], viewer, candidate, [None] * 2)[0] == 1


def test_no_events_have_no_amounts():
    nothing = np.array([], np.int64)
    assert len(amounts(STAY, np.array([], object), nothing, nothing, nothing, nothing)) == 0
