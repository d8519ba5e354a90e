"""Vectorized updates of maps and sums equal a plain reference implementation."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.features.affinity_maps import Parts
from serve.features.interactions import MAX_CANDIDATES_AT_ONCE, MIN_RECORDS_AT_ONCE, RECORD_COST
from serve.features.kinds.affinity import Maps
from serve.features.kinds.counters import Sums
from serve.features.rows import Schema, State
from serve.features.slots import CANDIDATE_ID
from serve.features.state_kind import STATE
from serve.features.surface import read_surface
from tests.support.small_surface import TOML, run_of

CLICKS = (
    'click_affinity = { kind = "affinity", event = "click", over = "join", field = "candidate.tags", '
    'half_life = "1m", prior = { rate = 0.1, weight = 10 }, keep = 2 }\n'
)
PAIR = 'entity = ["viewer", "candidate"]'
PAIRS = (
    f'shown = {{ kind = "count", {PAIR}, event = "impression", keep = 3 }}\n'
    f'clicked = {{ kind = "rate", {PAIR}, event = "click", over = "impression", half_life = "1h", '
    "prior = { rate = 0.1, weight = 10 }, keep = 4 }\n"
)
SCHEMA = Schema(read_surface(TOML.replace("keep = 4", "keep = 3") + CLICKS + PAIRS))
MAPS, SUMS = SCHEMA.kept(Maps), SCHEMA.kept(Sums)
VIEWERS, CANDIDATES = 3, 9
HOUR_MS = 3_600_000
# Times with ties, and times out of order.
TIMES = st.integers(0, 8).map(lambda n: n * HOUR_MS // 2) | st.integers(0, 4 * HOUR_MS)
ROWS = st.integers(0, CANDIDATES)
RECORDS = st.lists(
    st.tuples(st.just("impression"), st.integers(0, VIEWERS), st.lists(ROWS, min_size=0, max_size=7), TIMES)
    | st.tuples(
        st.sampled_from(["click", "join", "leave"]),
        st.integers(0, VIEWERS),
        st.lists(ROWS, min_size=1, max_size=1),
        TIMES,
    ),
    max_size=4 * MIN_RECORDS_AT_ONCE,
)
# Key 0 means no value.
KEYS = st.integers(0, 7)
WORLDS = st.lists(st.tuples(KEYS, st.lists(KEYS, min_size=3, max_size=3)), min_size=9, max_size=9)


def world(values) -> State:
    """Return a state with viewers and candidates; `values` are each candidate's topic and tags."""
    state = State(SCHEMA)
    for i in range(VIEWERS):
        state.upsert("viewer", f"v{i}", {})
    for i, (topic, tags) in enumerate(values):
        state.upsert("candidate", f"c{i}", {})
        state.candidates.table["topic"][i + 1] = topic
        distinct = sorted({tag for tag in tags if tag})
        state.candidates.table["tags"][i + 1] = distinct + [0] * (3 - len(distinct))
    return state


class Plain:
    """Reference implementation of `Map`: one record and one entry at a time."""

    def __init__(self, candidates):
        self.candidates = candidates
        # By map and viewer: [event, over, ms] by key, the oldest key first.
        self.held = defaultdict(dict)

    def observe(self, event, viewer, candidates, ts_ms):
        for i, m in enumerate(MAPS.slots):
            if viewer and event in (m.event, m.over):
                values = self.candidates[m.field.name][list(candidates)].ravel().tolist()
                touched = Counter(sorted(value for value in values if value))
                after = self.after_of_pairs if m.field == CANDIDATE_ID else self.after
                self.held[i, viewer] = after(m, self.held[i, viewer], touched, ts_ms, event == m.event)

    def after(self, m, entries, touched, ts_ms, hit):
        new = {key: (0.0, 0.0, ts_ms) for key in touched if key not in entries}
        entries = entries | new
        latest_ms = max((ms for *_, ms in entries.values()), default=0)

        def worth(key):
            event, over, ms = entries[key]
            decay = np.exp2((ms - latest_ms) / m.half_life_ms)
            arrived = touched[key] if key in new and not hit else 0
            return hit and key in touched, event * decay, (over + arrived) * decay, -key

        for key in sorted(entries, key=worth)[: max(0, len(entries) - m.keep)]:
            del entries[key]
        return self.counted(m, entries, touched, ts_ms, hit)

    def after_of_pairs(self, m, entries, touched, ts_ms, hit):
        new = {key: (0.0, 0.0, ts_ms) for key in touched if key not in entries}
        entries = self.counted(m, entries | new, touched, ts_ms, hit)
        newest = sorted(entries, key=lambda key: (-entries[key][2], key))[: m.keep]
        return {key: entry for key, entry in entries.items() if key in newest}

    def counted(self, m, entries, touched, ts_ms, hit):
        for key in touched.keys() & entries.keys():
            event, over, ms = entries[key]
            now_ms = max(ms, ts_ms)
            decay = np.exp2((ms - now_ms) / m.half_life_ms)
            arrived = touched[key] * np.exp2((ts_ms - now_ms) / m.half_life_ms)
            entries[key] = (event * decay + arrived * hit, over * decay + arrived * (not hit), now_ms)
        return entries


def held(state):
    """Read from packed rows the content that `Plain` holds."""
    found = {}
    for i, m in enumerate(MAPS.slots):
        parts = Parts.of(MAPS.of(state.viewers.table, m))
        for viewer in range(1, VIEWERS + 1):
            rows = zip(*(part[viewer].tolist() for part in parts), strict=True)
            found[i, viewer] = [row for row in rows if row[0]]
    return found


@given(WORLDS, RECORDS, st.integers(1, 4 * MIN_RECORDS_AT_ONCE))
@settings(deadline=None, max_examples=60)
def test_runs_leave_the_maps_that_the_rule_leaves_record_by_record(values, records, length):
    state = world(values)
    plain = Plain(state.candidates.table)
    for begin in range(0, len(records), length):
        state.observe(run_of(SCHEMA, records[begin : begin + length]))
    for record in records:
        plain.observe(*record)
    for place, entries in held(state).items():
        ours = plain.held[place]
        # The same entries were evicted, and the others kept their order.
        assert [key for key, *_ in entries] == list(ours)
        np.testing.assert_allclose([entry[1:] for entry in entries], list(ours.values()), rtol=1e-12)
    assert state.viewers.table[0].tobytes() == SCHEMA.blank("viewer")[0].tobytes()


@given(RECORDS, st.integers(1, 4 * MIN_RECORDS_AT_ONCE))
@settings(deadline=None, max_examples=40)
def test_runs_leave_the_sums_of_their_records(records, length):
    state, now_ms = world([(0, [])] * CANDIDATES), 5 * HOUR_MS
    for begin in range(0, len(records), length):
        state.observe(run_of(SCHEMA, records[begin : begin + length]))
    for rows, size in ((state.viewers, VIEWERS), (state.candidates, CANDIDATES)):
        for j, slot in enumerate(SUMS.by_entity[rows.entity]):
            wanted = np.zeros(size + 1)
            for event, viewer, candidates, ts_ms in records:
                for row in candidates if rows is state.candidates else [viewer] * len(candidates):
                    wanted[row] += (event == slot.event) * 2.0 ** ((ts_ms - now_ms) / slot.half_life_ms)
            wanted[0] = 0.0
            kept = rows.table[STATE][: size + 1]
            age_ms = now_ms - kept["sums_ms"][:, j]
            found = kept["sums"][:, j] * 2.0 ** (-age_ms / slot.half_life_ms)
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "num",
    [
        1,
        MIN_RECORDS_AT_ONCE,
        MAX_CANDIDATES_AT_ONCE // RECORD_COST,
        2 * MAX_CANDIDATES_AT_ONCE // RECORD_COST + 88,
    ],
)
def test_a_long_run_leaves_the_maps_of_its_records_to_the_last_bit(num):
    random = np.random.default_rng(0)
    topics, tags = random.integers(0, 8, CANDIDATES), random.integers(0, 8, (CANDIDATES, 3))
    values = list(zip(topics.tolist(), tags.tolist(), strict=True))
    at_once, stepped = world(values), world(values)
    records = []
    for event in random.choice(["impression", "join", "click"], num).tolist():
        size = int(random.integers(1, 8)) if event == "impression" else 1
        shown = random.integers(0, CANDIDATES + 1, size).tolist()
        records.append((event, int(random.integers(0, VIEWERS + 1)), shown, int(random.integers(0, HOUR_MS))))
    run = run_of(SCHEMA, records)
    assert sum(len(part.event) for part in run.parts()) == num
    at_once.observe(run)
    for record in records:
        stepped.observe(run_of(SCHEMA, [record]))
    assert held(at_once) == held(stepped)


def test_a_page_that_is_shown_again_leaves_the_same_pairs():
    state = world([(0, [])] * CANDIDATES)
    for ts_ms in range(1, 6):
        state.observe(run_of(SCHEMA, [("impression", 1, range(1, CANDIDATES + 1), ts_ms)]))
    shown = next(i for i, m in enumerate(MAPS.slots) if m.over == m.event)
    assert [(event, ms) for _, event, _, ms in held(state)[shown, 1]] == [(5, 5)] * 3
    # One from before them is not among the last.
    state.observe(run_of(SCHEMA, [("impression", 1, range(1, CANDIDATES + 1), 4)]))
    assert [ms for *_, ms in held(state)[shown, 1]] == [5] * 3
