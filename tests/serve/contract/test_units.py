"""Times in another unit than milliseconds: refused over HTTP and on the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve.contract.errors import RequestError, TabrankError
from serve.contract.validation import milliseconds, other_unit
from serve.features.surface import read_surface
from serve.http.decoding import decode_request
from serve.log.events import decode_batch
from tests.support.small_surface import TOML

SURFACE = read_surface(TOML.replace("[context]\n", "[context]\nopened_ms = 'time'\n"))
# 2000 and 2100
FIRST_MS, LAST_MS = 946_684_800_000, 4_102_444_800_000
NOW_MS = 1_764_000_000_000
WRONG = [
    (NOW_MS // 1000, "looks like seconds; multiply by 1000"),
    (NOW_MS * 1000, "looks like microseconds; divide by 1000"),
]
MS = st.integers(FIRST_MS, LAST_MS)


@given(MS)
@example(FIRST_MS)
@example(LAST_MS)
def test_a_time_of_this_century_is_recognized_in_every_unit(ms):
    assert other_unit(ms) == ""
    assert other_unit(ms // 1000) == "looks like seconds; multiply by 1000"
    assert other_unit(ms * 1000) == "looks like microseconds; divide by 1000"
    assert other_unit(ms * 1_000_000) == "looks like nanoseconds; divide by 1000000"


@given(st.integers(0, 400_000_000) | st.sampled_from([253_402_300_799_000, 2**53, 2**63 - 1]))
def test_simulated_times_from_0_on_and_an_end_that_never_comes_are_taken(ms):
    assert other_unit(ms) == ""


def rank(**changes):
    body = {"viewer": None, "candidates": ["a"], "now_ms": NOW_MS} | changes
    return decode_request(json.dumps(body).encode(), SURFACE, event_clock=True)


def rejected(event_clock=False, **record):
    body = json.dumps({"records": [record, {"type": "forget", "viewer": "ann", "ts_ms": NOW_MS}]})
    good, (one,) = decode_batch(body.encode(), SURFACE, event_clock=event_clock)
    assert list(good) == [1]
    return one.pointer, one.detail


@pytest.mark.parametrize(("time", "why"), [*WRONG, (NOW_MS * 1_000_000, "divide nanoseconds by 1000000")])
def test_a_request_or_record_with_a_time_in_another_unit_is_refused_with_the_factor(time, why):
    with pytest.raises(RequestError, match=why) as refused:
        rank(now_ms=time)
    assert refused.value.pointer == "/now_ms"
    with pytest.raises(RequestError, match=why) as refused:
        rank(context={"opened_ms": time})
    assert refused.value.pointer == "/context/opened_ms"
    for event_clock in (False, True):
        event = {"type": "event", "id": "e", "viewer": "ann", "candidate": "a", "kind": "join", "ts_ms": time}
        candidate = {"type": "candidate", "id": "a", "ts_ms": NOW_MS}
        for pointer, record in (
            ("/ts_ms", event),
            ("/ts_ms", {"type": "forget", "viewer": "ann", "ts_ms": time}),
            ("/ends_ms", candidate | {"ends_ms": time}),
            ("/fields/started_ms", candidate | {"fields": {"started_ms": time}}),
        ):
            at, detail = rejected(event_clock, **record)
            assert at == f"/records/0{pointer}"
            assert why in detail


@pytest.mark.parametrize("born_ms", [days * 86_400_000 for days in (6, 18, 24, 57)])
def test_a_field_may_be_a_birth_date_of_early_1970(born_ms):
    assert rank(context={"opened_ms": born_ms}).context == {"opened_ms": born_ms}
    record = {"type": "candidate", "id": "a", "fields": {"started_ms": born_ms}}
    good, refused = decode_batch(json.dumps({"records": [record]}).encode(), SURFACE, event_clock=False)
    assert (good[0].fields, refused) == ({"started_ms": born_ms}, [])


@pytest.mark.parametrize("year", [2020, 2034])
def test_a_field_in_seconds_of_these_years_is_refused(year):
    last_s = int(datetime(year, 12, 31, tzinfo=UTC).timestamp())
    with pytest.raises(RequestError, match="looks like seconds; multiply by 1000"):
        rank(context={"opened_ms": last_s})


def test_a_time_as_python_gives_it_is_refused_with_the_factor():
    pointer, detail = rejected(type="forget", viewer="ann", ts_ms=NOW_MS / 1000 + 0.5)
    assert pointer == "/records/0/ts_ms"
    assert "multiply seconds by 1000" in detail


@pytest.mark.parametrize(("time", "why"), WRONG)
def test_an_option_in_another_unit_is_refused_with_the_factor(time, why):
    with pytest.raises(TabrankError, match=f"--until: {time} {why}"):
        milliseconds(str(time), "--until")
    assert milliseconds(str(NOW_MS), "--until") == NOW_MS
