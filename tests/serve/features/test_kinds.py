"""Contract of feature kinds: each kind of the registry, with options and records drawn at random.

A new kind is tested here without an edit.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from serve.contract.records import Event
from serve.features.batch import Batch
from serve.features.common_state import common_cells, is_common, view
from serve.features.matrix import Features
from serve.features.registry import KINDS
from serve.features.rows import Schema, State
from serve.ingest.apply import RecordApplier, packed, packed_values
from serve.log.events import Exposure
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.log.writer import write_log
from tests.support.kind_world import CANDIDATES, VIEWERS, drawn_records, features_of, log_tables, surface_of

# Features that keep each kind of state, beside the one under test.
OTHERS = {
    "joins": {"kind": "count", "entity": "candidate", "event": "join"},
    "taste": {
        "kind": "affinity",
        "event": "join",
        "over": "impression",
        "field": "candidate.language",
        "prior": {"rate": 0.1, "weight": 10},
        "keep": 2,
    },
    "audience": {"kind": "gauge", "entity": "candidate", "up": "join", "down": "leave"},
}
SEEDS = st.integers(0, 2**32 - 1)
each_kind = pytest.mark.parametrize("kind", KINDS)


def served(schema, records, at_once=1, restart_at=()):
    """Return the state after records, `at_once` in a call, with its rows packed and read again."""
    state = State(schema)
    for begin in range(0, len(records), at_once):
        applier = RecordApplier(state)
        for record in records[begin : begin + at_once]:
            applier.apply(record)
        applier.observe()
        if begin in restart_at:
            before, state = state, State(schema)
            state.viewers.apply(packed(before.viewers, before.viewers.index))
            state.candidates.apply(
                {**packed(before.candidates, before.candidates.index), **values_in(before)}
            )
    return state


def values_in(state):
    """Return the packed rows of all values of candidates' fields."""
    every = {field: values.index.values() for field, values in state.candidates.values.items()}
    held, at_rest = packed_values(state.candidates, every)
    return held | at_rest


def batch_of(state, now_ms, viewers=(*VIEWERS, "nobody")):
    """Return what features read, for a request of each viewer with all candidates."""
    shown = [*CANDIDATES, "nothing"]
    contexts = [{"language": "fr", "price": 3.0}, {}, {"topics": ["jazz"]}, {}, {"born_ms": 5}]
    at = state.candidates.find(shown * len(viewers))
    return (
        state.viewers.table[state.viewers.find(viewers)],
        state.candidates.table[at],
        state.schema.context_rows([contexts[len(name) % len(contexts)] for name in viewers]),
        np.repeat(np.arange(len(viewers)), len(shown)),
        np.full(len(viewers), now_ms),
        state.candidates.values_of(at),
    )


def computed(state, now_ms, **more):
    return Features(state.schema).compute(*batch_of(state, now_ms, **more))


def assert_equal(ours, theirs, tolerance=0.0):
    np.testing.assert_allclose(ours.numeric, theirs.numeric, rtol=tolerance, atol=tolerance)
    assert ours.category.tolist() == theirs.category.tolist()


@each_kind
@given(data=st.data(), seed=SEEDS)
@settings(deadline=None, max_examples=6)
def test_a_value_has_the_type_and_shape_of_its_kind(kind, data, seed):
    surface = surface_of(x=data.draw(features_of(kind)))
    records, now_ms = drawn_records(seed, 30)
    state, feature = served(Schema(surface), records), surface.features["x"]
    rows = batch_of(state, now_ms)
    assert feature.label != "unnamed"
    value = feature.value(Batch(state.schema.state, *rows))
    num_rows, width = len(rows[1]), feature.width(surface.fields)
    assert value.shape == ((num_rows,) if width is None else (num_rows, width))
    if feature.categorical:
        assert value.dtype == np.uint64
    else:
        assert width is None
        assert np.issubdtype(value.dtype, np.number)
        assert not np.isinf(value).any()


@pytest.mark.parametrize("at_once", [1, 100])
@pytest.mark.parametrize("entity", ["viewer", "candidate", "candidate.host", ["viewer", "candidate"]])
def test_an_exposure_counts_for_those_that_it_stands_for(entity, at_once):
    seen = {"kind": "count", "entity": entity, "event": "impression"}
    taste = OTHERS["taste"] | {"keep": 8}
    schema = Schema(surface_of(seen=seen, taste=taste))
    first, now_ms = drawn_records(3, 0)
    kept = [
        Exposure(f"r{i}", now_ms + i, VIEWERS[i % 2], [*CANDIDATES[i % 3 :]], b"", None, "m", "full", 0)
        for i in range(40)
    ]
    events = [Event(f"e{i}", VIEWERS[0], CANDIDATES[i], "join", now_ms + 50) for i in range(3)]
    five = [replace(exposure, one_in=5) for exposure in kept]
    sampled = served(schema, [*first, *five, *events], at_once)
    whole = served(schema, [*first, *(exposure for exposure in kept for _ in range(5)), *events])
    alone = served(schema, [*first, *kept, *events])
    assert_equal(computed(sampled, now_ms + 60), computed(whole, now_ms + 60), 1e-6)
    assert not np.array_equal(computed(alone, now_ms + 60).numeric, computed(whole, now_ms + 60).numeric)


@each_kind
@given(data=st.data(), seed=SEEDS, at_once=st.integers(2, 60))
@settings(deadline=None, max_examples=6)
def test_many_records_at_once_give_the_features_of_one_at_a_time(kind, data, seed, at_once):
    schema = Schema(surface_of(x=data.draw(features_of(kind))))
    records, now_ms = drawn_records(seed, 60)
    one, many = served(schema, records), served(schema, records, at_once)
    assert_equal(computed(one, now_ms), computed(many, now_ms), 1e-6)
    for rows in (one.viewers, one.candidates, many.viewers, many.candidates):
        assert rows.table[0].tobytes() == schema.blank(rows.entity)[0].tobytes()


@each_kind
@given(data=st.data(), seed=SEEDS)
@settings(deadline=None, max_examples=5)
def test_training_replays_the_features_that_were_served(kind, data, seed, tmp_path_factory):
    surface = surface_of(x=data.draw(features_of(kind)))
    records, now_ms = drawn_records(seed, 60)
    folder = tmp_path_factory.mktemp("log") / "log"
    write_log(folder, log_tables(records))
    replay = Replay(Schema(surface), read_log(folder, surface))
    replay.finish()
    state = served(Schema(surface), records)
    assert_equal(computed(replay.as_served(), now_ms), computed(state, now_ms), 1e-6)


@each_kind
@given(data=st.data(), seed=SEEDS, restart_at=st.sets(st.integers(0, 60), max_size=5))
@settings(deadline=None, max_examples=5)
def test_a_restart_changes_no_feature(kind, data, seed, restart_at):
    schema = Schema(surface_of(x=data.draw(features_of(kind))))
    records, now_ms = drawn_records(seed, 60)
    on, again = served(schema, records), served(schema, records, restart_at=restart_at)
    assert_equal(computed(on, now_ms), computed(again, now_ms))


@each_kind
@given(data=st.data(), seed=SEEDS)
@settings(deadline=None, max_examples=5)
def test_a_batch_has_the_bits_of_each_request_alone_and_its_rows_stay(kind, data, seed):
    records, now_ms = drawn_records(seed, 40)
    state = served(Schema(surface_of(x=data.draw(features_of(kind)))), records)
    rows = batch_of(state, now_ms)
    before = [part.tobytes() for part in rows[:-1]]
    together = Features(state.schema).compute(*rows)
    assert [part.tobytes() for part in rows[:-1]] == before
    viewers = [*VIEWERS, "nobody"]
    num = len(together.numeric) // len(viewers)
    for i, viewer in enumerate(viewers):
        alone = computed(state, now_ms, viewers=[viewer])
        assert_equal(together.rows(slice(i * num, (i + 1) * num)), alone)


@each_kind
@given(data=st.data())
@settings(deadline=None, max_examples=10)
def test_options_change_the_fingerprint_and_slots_that_of_the_state(kind, data):
    options, others = data.draw(features_of(kind)), data.draw(features_of(kind))
    plain, one, other = (surface_of(**features) for features in ({}, {"x": options}, {"x": others}))
    ours, theirs = one.features["x"], other.features["x"]
    assert one.fingerprint != plain.fingerprint
    assert (one.fingerprint == other.fingerprint) == (ours == theirs)
    assert (Schema(one).fingerprint == Schema(plain).fingerprint) == (not ours.slots)
    assert (Schema(one).fingerprint == Schema(other).fingerprint) == (ours.slots == theirs.slots)


@each_kind
@given(data=st.data(), seed=SEEDS)
@settings(deadline=None, max_examples=5)
def test_a_changed_surface_takes_the_state_that_it_has_in_common(kind, data, seed):
    options, others = data.draw(features_of(kind)), data.draw(features_of(kind))
    old = Schema(surface_of(x=options, y=others))
    new = Schema(surface_of(**OTHERS, y=others, x=options))
    records, now_ms = drawn_records(seed, 60)
    given_state, state = served(old, records), State(new)
    for rows, theirs in ((state.viewers, given_state.viewers), (state.candidates, given_state.candidates)):
        at = [rows.add(name) for name in theirs.index]
        for ours, cell in common_cells(new, old, rows.entity):
            view(rows.table, ours)[at] = view(theirs.table, cell)[list(theirs.index.values())]
    state.candidates.link(np.arange(len(state.candidates.ids)))
    for field, theirs in given_state.candidates.values.items():
        rows = state.candidates.values[field]
        at = [rows.add(key) for key in theirs.index]
        for ours, cell in common_cells(new, old, rows.entity):
            view(rows.table, ours)[at] = view(theirs.table, cell)[list(theirs.index.values())]
    for name in ("x", "y"):
        values = [
            schema.surface.features[name].value(Batch(schema.state, *batch_of(each, now_ms)))
            for schema, each in ((old, given_state), (new, state))
        ]
        np.testing.assert_array_equal(*values)
        assert is_common(new.surface.features[name], new, old)
    alone = Schema(surface_of(x=options))
    kept = set(alone.surface.features["x"].slots) >= set(old.surface.features["y"].slots)
    assert is_common(old.surface.features["y"], old, alone) == kept


@each_kind
@given(data=st.data())
@settings(deadline=None, max_examples=5)
def test_every_field_begins_at_a_multiple_of_eight_bytes(kind, data):
    schema = Schema(surface_of(x=data.draw(features_of(kind))))

    def offsets(dtype):
        for inner, offset, *_ in (dtype.fields or {}).values():
            yield offset
            yield from offsets(inner.base)
        yield dtype.itemsize if dtype.fields else 0

    assert {at % 8 for row in (schema.viewer, schema.candidate) for at in offsets(row)} == {0}
