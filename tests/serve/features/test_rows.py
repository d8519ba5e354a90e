from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.features.kinds.affinity import Maps
from serve.features.kinds.counters import Sums
from serve.features.rows import RowTable, Schema, State
from serve.features.state_kind import STATE
from serve.features.surface import read_surface
from tests.support.small_surface import TOML, run_of

SCHEMA = Schema(read_surface(TOML))
MAPS = SCHEMA.kept(Maps)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "impression"]),
        # Row numbers of viewers and candidates; 0 stands for unknown ids.
        st.integers(0, 2),
        st.integers(0, 3),
        st.integers(0, 100_000),
    ),
    max_size=30,
)


def fresh():
    state = State(SCHEMA)
    for name in ("ann", "bob"):
        state.upsert("viewer", name, {"language": "en"})
    for i, name in enumerate(("a", "b", "c")):
        state.upsert("candidate", name, {"topic": f"t{i}", "tags": [f"x{j}" for j in range(i + 1)]})
    return state


def see(state, kind, viewer, candidate, ts_ms):
    """Apply one record of one candidate."""
    state.observe(run_of(SCHEMA, [(kind, viewer, [candidate], ts_ms)]))


def topics(state):
    """Return the fields of the first viewer's map of topics."""
    slot = next(slot for slot in MAPS.slots if slot.field.name == "topic")
    return MAPS.of(state.viewers.table, slot)[1]


def sums_at(state, now_ms):
    """Return the sums decayed to one time: equal states may have different reference times."""
    found = []
    for rows in (state.viewers, state.candidates):
        n = len(rows) + 1
        state = rows.table[STATE][:n]
        age = now_ms - state["sums_ms"]
        found.append(state["sums"] * np.exp2(-age * SCHEMA.kept(Sums).rates[rows.entity]))
    return np.concatenate([part.ravel() for part in found])


@given(EVENTS, st.randoms())
@settings(deadline=None, max_examples=20)
def test_sums_do_not_depend_on_the_order_of_events(events, random):
    shuffled = random.sample(events, len(events))
    states = []
    for order in (events, shuffled):
        state = fresh()
        for kind, v, c, ts_ms in order:
            see(state, kind, v, c, ts_ms)
        states.append(sums_at(state, 200_000))
    np.testing.assert_allclose(states[0], states[1], rtol=1e-9, atol=1e-12)


@given(EVENTS)
@settings(deadline=None, max_examples=20)
def test_many_events_at_once_leave_the_sums_of_one_by_one(events):
    one, many = fresh(), fresh()
    for kind, v, c, ts_ms in events:
        see(one, kind, v, c, ts_ms)
    many.observe(run_of(SCHEMA, [(kind, v, [c], ts_ms) for kind, v, c, ts_ms in events]))
    np.testing.assert_allclose(sums_at(one, 200_000), sums_at(many, 200_000), rtol=1e-9, atol=1e-12)


@given(EVENTS)
@settings(deadline=None, max_examples=20)
def test_nobody_takes_no_state_and_a_map_holds_at_most_its_entries(events):
    state = fresh()
    for kind, v, c, ts_ms in events:
        see(state, kind, v, c, ts_ms)
    for rows in (state.viewers, state.candidates):
        assert rows.table[0].tobytes() == SCHEMA.blank(rows.entity)[0].tobytes()
    for slot in MAPS.slots:
        for row in MAPS.of(state.viewers.table, slot)["keys"]:
            used = row[row != 0]
            assert len(set(used.tolist())) == len(used)


def test_a_full_map_evicts_the_entry_that_says_least():
    state = State(SCHEMA)
    state.upsert("viewer", "ann", {})
    for i in range(6):
        state.upsert("candidate", f"c{i}", {"topic": f"t{i}"})
    for i in range(4):
        see(state, "impression", 1, i + 1, 1_000 * i)
    # The oldest entry, but the only one with a join.
    see(state, "join", 1, 1, 4_000)
    see(state, "impression", 1, 5, 5_000)
    held = set(topics(state)["keys"].tolist())
    topic = {
        name: int(state.candidates.table["topic"][state.candidates.index[name]])
        for name in state.candidates.index
    }
    assert held == {topic["c0"], topic["c2"], topic["c3"], topic["c4"]}


def test_rows_survive_packing():
    state = fresh()
    see(state, "join", 1, 2, 7)
    copy = RowTable(SCHEMA, "candidate")
    copy.apply({"b": state.candidates.table[2].tobytes()})
    assert copy.table[copy.index["b"]].tobytes() == state.candidates.table[2].tobytes()


def test_a_dropped_rows_place_is_used_again_and_the_id_is_unknown():
    rows = RowTable(SCHEMA, "candidate")
    for i in range(100):
        rows.add(f"c{i}")
    place = rows.index["c7"]
    rows.drop("c7")
    assert rows.find(["c7", "c8"]).tolist() == [0, rows.index["c8"]]
    assert rows.add("new") == place
    assert len(rows) == 100


def test_a_full_map_makes_room_for_what_the_viewer_does_next():
    state = State(SCHEMA)
    state.upsert("viewer", "ann", {})
    for i in range(5):
        state.upsert("candidate", f"c{i}", {"topic": f"t{i}"})
    for ts_ms in range(50):
        for i in range(4):
            see(state, "impression", 1, i + 1, ts_ms)
            see(state, "join", 1, i + 1, ts_ms)
    for ts_ms in range(100, 105):
        see(state, "impression", 1, 5, ts_ms)
        see(state, "join", 1, 5, ts_ms)
    newcomer = topics(state)["keys"] == state.candidates.table["topic"][5]
    assert topics(state)["event"][newcomer] == [pytest.approx(5)]
