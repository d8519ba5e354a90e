"""Test that features use the past alone, on small random logs and on replays that look ahead."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import training.data.dataset
from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log.reader import Log, read_log
from serve.log.replay import Replay
from serve.log.writer import write_log
from tests.support.point_in_time import point_in_time
from tests.support.small_surface import STRINGS, TOML, tables

TOLERANCE = 1e-6
# Rows of unknown candidates are compared too; those of `CLIENTS` are left out.
SURFACE = read_surface(f'unknown_candidates = "scored"\n{TOML}')
SCHEMA = Schema(SURFACE)
CLIENTS = Schema(read_surface(TOML.replace('["click"', '["impression", "click"')))
# eve and zz have no rows.
VIEWERS, CANDIDATES = ("ann", "bob", "eve"), ("a", "b", "c", "d", "zz")
# So few times that ties are frequent.
TIME = st.integers(0, 12).map(lambda s: 1_000 * s)
MAYBE_TIME = st.none() | TIME
WORD = st.sampled_from([None, "en", "fr", "news", "jazz", "hal", "ida"])
WORDS = st.none() | st.lists(st.sampled_from(["x", "y", "hal", "ida"]), max_size=5)
CONTEXT = pa.struct([("hour", pa.float64())])


@st.composite
def logs(draw, kinds=("click", "join", "leave")) -> Log:
    """Draw random logs.

    Upserts with and without a date, repeated; exposures without a viewer and of unknown ids; events
    late, early and at the same time.
    """
    viewers = draw(
        st.lists(st.tuples(st.sampled_from(["ann", "bob"]), MAYBE_TIME, WORD, WORDS), min_size=1, max_size=4)
    )
    candidate = st.tuples(
        st.sampled_from(CANDIDATES[:4]),
        MAYBE_TIME,
        MAYBE_TIME,
        WORD,
        WORD,
        WORD,
        WORDS,
        st.none() | st.floats(0, 9),
        MAYBE_TIME,
    )
    candidates = draw(st.lists(candidate, min_size=1, max_size=6))
    slate = st.lists(st.sampled_from(CANDIDATES), min_size=1, max_size=4, unique=True)
    exposure = st.tuples(TIME, st.none() | st.sampled_from(VIEWERS), slate, st.none() | st.floats(0, 23))
    exposures = draw(st.lists(exposure, min_size=1, max_size=8))
    requests = st.none() | st.integers(0, len(exposures) - 1).map(lambda i: f"r{i}")
    happening = st.tuples(
        TIME, st.sampled_from(VIEWERS), st.sampled_from(CANDIDATES), st.sampled_from(kinds), requests
    )
    events = draw(st.lists(happening, min_size=1, max_size=15))
    return log_of(viewers, candidates, exposures, events)


def log_of(viewers, candidates, exposures, events) -> Log:
    """Write a log of rows; the fields are in the order of its tables."""

    def column(rows, i, kind):
        return pa.array([row[i] for row in rows], kind)

    def unserved(rows, **kinds):
        """Add the columns that these rows leave empty."""
        kinds = {"seq": pa.int64()} | kinds
        return {name: pa.nulls(len(rows), kind) for name, kind in kinds.items()}

    def erased(rows):
        return {"erased": pa.array([False] * len(rows), pa.bool_())}

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    fields = (("ends_ms", whole), ("host", text), ("topic", text), ("language", text), ("tags", STRINGS))
    return Log(
        viewers=pa.table(
            {
                "id": column(viewers, 0, text),
                "ts_ms": column(viewers, 1, whole),
                "language": column(viewers, 2, text),
                "follows": column(viewers, 3, STRINGS),
            }
            | unserved(viewers, stated=STRINGS, removed=pa.bool_(), received_ms=whole)
        ),
        candidates=pa.table(
            {"id": column(candidates, 0, text), "ts_ms": column(candidates, 1, whole)}
            | {name: column(candidates, 2 + i, kind) for i, (name, kind) in enumerate(fields)}
            | {"price": column(candidates, 7, real), "started_ms": column(candidates, 8, whole)}
            | unserved(candidates, stated=STRINGS, removed=pa.bool_(), received_ms=whole)
        ),
        exposures=pa.table(
            {
                "request_id": [f"r{i}" for i in range(len(exposures))],
                "ts_ms": column(exposures, 0, whole),
                "viewer": column(exposures, 1, text),
                "candidates": column(exposures, 2, STRINGS),
                "context": pa.array([None if e[3] is None else {"hour": e[3]} for e in exposures], CONTEXT),
                "traffic": pa.nulls(len(exposures), text),
                "one_in": pa.array([1] * len(exposures), whole),
            }
            | unserved(exposures, seen_seq=whole, stated=text, pinned=pa.list_(whole))
            | erased(exposures)
        ),
        events=pa.table(
            {"id": [f"e{i}" for i in range(len(events))], "ts_ms": column(events, 0, whole)}
            | {
                n: column(events, 1 + i, text)
                for i, n in enumerate(("viewer", "candidate", "kind", "request_id"))
            }
            | unserved(events, value=real)
            | erased(events)
        ),
    )


@settings(max_examples=60, deadline=None)
@given(logs(), st.floats(0, 1))
def test_every_kind_uses_the_past_alone(log, at):
    largest = point_in_time(SCHEMA, log, at)
    assert set(largest) == set(SURFACE.features)
    assert max(largest.values()) <= TOLERANCE, largest


@settings(max_examples=60, deadline=None)
@given(logs())
def test_a_candidate_is_unknown_where_the_state_has_no_row_of_it(log):
    expected, ahead, replay = [], Replay(SCHEMA, log), Replay(SCHEMA, log)
    for i in np.argsort(replay.sees, kind="stable").tolist():
        replay.advance_to(int(replay.sees[i]))
        shown = np.arange(replay.first[i], replay.first[i + 1])
        expected += zip(shown.tolist(), (replay.candidate_rows(shown) == 0).tolist(), strict=True)
    assert ahead.unknown().tolist() == [is_unknown for _, is_unknown in sorted(expected)]


@settings(max_examples=30, deadline=None)
@given(logs(kinds=("impression", "join", "leave")), st.floats(0, 1))
def test_it_holds_where_clients_report_impressions(log, at):
    try:
        largest = point_in_time(CLIENTS, log, at)
    # There are no rows before the cut.
    except TabrankError:
        event("nothing to compare")
    else:
        assert max(largest.values()) <= TOLERANCE, largest


def plain(**changes) -> Log:
    """Write three exposures, a join at the instant of the last one, and one after it."""
    rows = {
        "viewers": [("ann", None, "en", ["hal"])],
        "candidates": [("a", None, None, "hal", "news", "en", ["x"], 1.0, 0)],
        "exposures": [(1_000, "ann", ["a"], 3.0), (2_000, "ann", ["a"], 3.0), (5_000, "ann", ["a"], 3.0)],
        "events": [
            (1_500, "ann", "a", "join", None),
            (5_000, "ann", "a", "join", None),
            (5_500, "ann", "a", "leave", None),
        ],
    }
    return log_of(**(rows | changes))


class SeesTies(Replay):
    """Apply the records of the same instant too."""

    def position(self, before_ms):
        return super().position(before_ms + 1)


class SeesASecondAhead(Replay):
    """Apply events of the next second."""

    def position(self, before_ms):
        return super().position(before_ms + 1_000)


def test_the_plain_log_passes():
    assert max(point_in_time(SCHEMA, plain(), 1.0).values()) == 0.0


@pytest.mark.parametrize("replay", [SeesTies, SeesASecondAhead])
def test_a_replay_that_goes_too_far_is_caught(monkeypatch, replay):
    monkeypatch.setattr(training.data.dataset, "Replay", replay)
    largest = point_in_time(SCHEMA, plain(), 1.0)
    assert {"joins", "join_rate", "topic_affinity", "tag_affinity"} <= {
        name for name, apart in largest.items() if apart > TOLERANCE
    }


def test_a_slate_that_sees_its_own_impressions_is_caught(monkeypatch):
    """Only exposures happen at that instant, so only the duplicates can show the difference."""
    monkeypatch.setattr(training.data.dataset, "Replay", SeesTies)
    largest = point_in_time(SCHEMA, plain(events=[(1_500, "ann", "a", "join", None)]), 1.0)
    assert largest["seen"] > TOLERANCE
    assert largest["join_rate"] > TOLERANCE


def test_an_attribute_taken_before_its_time_is_caught(monkeypatch):
    """Dated rows applied from the start differ.

    A category that differs is infinitely far, a number as far as its difference.
    """

    class SinceEver(Replay):
        def __init__(self, schema, log):
            undated = pa.nulls(len(log.candidates), pa.int64())
            at = log.candidates.column_names.index("ts_ms")
            super().__init__(
                schema,
                Log(log.viewers, log.candidates.set_column(at, "ts_ms", undated), log.exposures, log.events),
            )

    later = ("a", 5_000, None, "ida", "jazz", "fr", ["y"], 7.0, 4_000)
    first = ("a", None, None, "hal", "news", "en", ["x"], 1.0, 0)
    dated = plain(candidates=[first, later])
    assert max(point_in_time(SCHEMA, dated, 1.0).values()) == 0.0
    monkeypatch.setattr(training.data.dataset, "Replay", SinceEver)
    largest = point_in_time(SCHEMA, dated, 1.0)
    assert largest["topic"] == float("inf")
    assert largest["tags"] == float("inf")
    assert largest["price"] == pytest.approx(6 / 7)
    assert largest["same_language"] == 1.0
    assert largest["hour"] == 0.0


def test_a_share_beyond_the_log_is_refused():
    with pytest.raises(TabrankError, match=r"at: 1.5 must lie between 0 and 1"):
        point_in_time(SCHEMA, plain(), 1.5)


def test_it_works_on_a_log_as_it_is_read(tmp_path):
    write_log(tmp_path / "log", tables())
    for at in (0.0, 0.5, 1.0):
        assert max(point_in_time(SCHEMA, read_log(tmp_path / "log", SURFACE), at).values()) <= TOLERANCE
