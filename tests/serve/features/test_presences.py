"""Gauges count each viewer once at a candidate, drop who stays too long, and stay above 0.

Friends are those viewers of a set whom the gauge counts.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.contract.hashing import hash64
from serve.features.kinds import gauge
from serve.features.kinds.gauge import NEWEST, PLACES, STEPS
from serve.features.matrix import Features
from serve.features.rows import Schema, State
from serve.features.surface import read_surface
from tests.support.small_surface import TOML, run_of

OURS = 'rooms = { kind = "gauge", entity = "viewer", up = "join", down = "leave", max_stay = "70s" }\n'
OURS += 'friends = { kind = "friends", viewer = "viewer.follows", up = "join", down = "leave", max_stay = "70s" }\n'
SURFACE = read_surface(TOML.replace('down = "leave" }', 'down = "leave", max_stay = "70s" }\n' + OURS))
SCHEMA = Schema(SURFACE)
STAY_MS, STEP_MS = 70_000, 70_000 // STEPS
CANDIDATES = 12


class Tab:
    """State of twelve candidates and their audiences.

    Each viewer follows one: the viewer. So a feature's value says whether it knows the viewer.
    """

    def __init__(self, num_viewers, schema=SCHEMA):
        self.schema = schema
        self.state = State(schema)
        self.viewers = [self.state.viewers.add(f"v{i}") for i in range(num_viewers)]
        for i in range(num_viewers):
            self.state.upsert("viewer", f"v{i}", {"follows": [f"v{i}"]})
        for i in range(CANDIDATES):
            self.state.upsert("candidate", f"c{i}", {})

    def observe(self, *records):
        """Apply (event, viewer's row, candidate's row, ts_ms) at once; return the rows left."""
        return self.state.observe(
            run_of(self.schema, [(event, v, [c], ts_ms) for event, v, c, ts_ms in records])
        )

    def read(self, now_ms):
        """Return the features by name, of each viewer (an unknown one first) and candidate."""
        viewers, rows = np.array([0, *self.viewers]), np.arange(1, CANDIDATES + 1)
        each = [np.repeat(np.arange(len(viewers)), CANDIDATES), np.full(len(viewers), now_ms)]
        at, candidates = np.tile(rows, len(viewers)), self.state.candidates
        tables = self.state.viewers.table[viewers], candidates.table[at]
        features, contexts = Features(self.schema), self.schema.context_rows([{}] * len(viewers))
        matrix = features.compute(*tables, contexts, *each, candidates.values_of(at))
        columns = matrix.numeric.T.reshape(-1, len(viewers), CANDIDATES)
        return dict(zip(features.columns.numeric, columns, strict=True))

    def packed(self):
        """Return the bytes of all candidates, with those of who is inside."""
        candidates = self.state.candidates
        tables = (candidates, *candidates.values.values())
        return b"".join(rows.table[: len(rows.ids)].tobytes() for rows in tables)

    def gauges(self, now_ms):
        """Return the audience of each candidate, and the number of rooms of each viewer."""
        named = self.read(now_ms)
        return named["audience"][0].tolist(), named["rooms"][1:, 0].tolist()

    def inside(self, now_ms):
        """Return the rows of the viewers whom each candidate knows to be there."""
        friends = self.read(now_ms)["friends"]
        assert friends.max() <= 1
        return [set(np.flatnonzero(column).tolist()) for column in friends.T]

    def renew(self, candidate):
        """Remove a candidate, and add it again."""
        self.state.candidates.drop(f"c{candidate - 1}")
        self.state.upsert("candidate", f"c{candidate - 1}", {})

    def audience(self, now_ms, candidate=1):
        return self.gauges(now_ms)[0][candidate - 1]


def test_leaves_of_one_viewer_take_nothing_from_those_who_join():
    tab = Tab(500)
    for i in range(2_000):
        tab.observe(("leave", 1, 1, i))
    tab.observe(*(("join", viewer, 1, 3_000) for viewer in tab.viewers))
    assert tab.audience(3_000) == 500


@pytest.mark.parametrize("at_once", [False, True])
def test_a_viewer_who_joins_ten_thousand_times_is_one(at_once):
    tab = Tab(1)
    joins = [("join", 1, 1, i) for i in range(10_000)]
    for part in [joins] if at_once else [[join] for join in joins]:
        tab.observe(*part)
    assert tab.gauges(10_000) == ([1] + [0] * 11, [1])


def test_who_never_leaves_is_gone_after_the_longest_stay():
    tab = Tab(20)
    tab.observe(*(("join", viewer, 1, 1_000 * viewer) for viewer in tab.viewers))
    assert tab.audience(20_000) == 20
    assert tab.audience(1_000 + STAY_MS - STEP_MS) == 20
    assert tab.audience(20_000 + STAY_MS) == 0
    # A further join begins the stay again.
    tab.observe(("join", 7, 1, 70_000))
    assert tab.gauges(20_000 + STAY_MS) == ([1] + [0] * 11, [0] * 6 + [1] + [0] * 13)
    tab.observe(("leave", 7, 1, 20_000 + STAY_MS))
    assert tab.audience(20_000 + STAY_MS) == 0


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("ahead", ["alone", "one of them"])
@pytest.mark.parametrize("first", [True, False])
def test_a_join_ten_years_ahead_hides_nobody_who_comes_after_it(ahead, first, at_once):
    tab, now_ms = Tab(501), 1_800_000_000_000
    before = [] if first else [("join", viewer, 1, now_ms - 100) for viewer in range(2, 10)]
    far = ("join", 501 if ahead == "alone" else 7, 1, now_ms + 10 * 365 * 86_400_000)
    moves = [*before, far, *(("join", viewer, 1, now_ms + viewer) for viewer in range(1, 501))]
    for part in [moves] if at_once else [[move] for move in moves]:
        tab.observe(*part)
    assert tab.audience(now_ms + 500) == 500
    tab.observe(*(("leave", viewer, 1, now_ms + 1_000) for viewer in range(1, 501)))
    assert tab.gauges(now_ms + 1_000) == ([0] * 12, [0] * 501)


def test_late_joins_of_one_viewer_hide_one_at_most():
    tab, now_ms = Tab(20), 1_800_000_000_000
    tab.observe(*(("join", viewer, 1, now_ms) for viewer in range(1, 20)))
    tab.observe(*(("join", 20, 1, now_ms - 10**10 + i * 10**6) for i in range(1_000)))
    assert tab.audience(now_ms) == 19


def test_a_stay_lasts_four_hours_by_default():
    default, stated = (
        Schema(read_surface(TOML.replace('down = "leave" }', f'down = "leave"{stay} }}')))
        for stay in ("", ', max_stay = "4h"')
    )
    assert default.fingerprint == stated.fingerprint != SCHEMA.fingerprint


def test_viewers_without_an_id_do_not_count():
    tab = Tab(1)
    tab.observe(("join", 0, 1, 0), ("join", 1, 0, 0), ("leave", 0, 1, 0))
    assert tab.gauges(0) == ([0] * 12, [0])
    assert tab.state.candidates.table[0].tobytes() == SCHEMA.blank("candidate").tobytes()


def test_a_viewer_counts_at_the_last_candidates_only():
    tab = Tab(1)
    left = [tab.observe(("join", 1, candidate, candidate)) for candidate in range(1, CANDIDATES + 1)]
    # The store needs the rows that changed without a record of theirs.
    assert left == [[]] * PLACES + [[row] for row in range(1, CANDIDATES - PLACES + 1)]
    assert tab.gauges(100) == ([0] * (CANDIDATES - PLACES) + [1] * PLACES, [PLACES])
    # A viewer who comes back is not counted twice.
    tab.observe(("join", 1, 1, 200), ("leave", 1, 12, 200))
    assert sum(tab.gauges(200)[0]) == PLACES - 1


def test_a_stay_that_ended_gives_its_place_to_the_next():
    tab = Tab(1)
    for candidate in range(1, CANDIDATES + 1):
        tab.observe(("join", 1, candidate, 10 * candidate), ("leave", 1, candidate, 10 * candidate + 5))
    tab.observe(*(("join", 1, candidate, 1_000) for candidate in range(1, PLACES + 1)))
    assert tab.gauges(1_000) == ([1] * PLACES + [0] * (CANDIDATES - PLACES), [PLACES])


def test_a_forgotten_viewer_leaves():
    tab = Tab(2)
    for _ in range(100):
        tab.observe(("join", 1, 1, 0), ("join", 2, 1, 0), ("join", 1, 2, 0))
        assert sorted(tab.state.forget("v0")) == [1, 2]
    assert tab.gauges(0) == ([1] + [0] * 11, [0, 1])
    assert tab.inside(0)[:2] == [{2}, set()]
    assert hash64("v0").to_bytes(8, "little") not in tab.packed()
    assert tab.state.viewers.table[1].tobytes() == SCHEMA.blank("viewer").tobytes()


def test_the_viewers_of_a_removed_candidate_are_not_those_of_its_successor():
    tab = Tab(2)
    tab.observe(("join", 1, 1, 0), ("join", 2, 1, 0))
    tab.renew(1)
    tab.observe(("leave", 1, 1, 1))
    assert tab.audience(1) == 0
    tab.observe(("join", 2, 1, 2))
    assert tab.audience(2) == 1


@pytest.mark.parametrize("pause_ms", [1, STEP_MS, STAY_MS])
def test_all_who_come_back_to_a_candidate_that_comes_back_count(pause_ms):
    tab = Tab(12)
    tab.observe(*(("join", viewer, 1, 100) for viewer in tab.viewers))
    tab.renew(1)
    again_ms = 100 + pause_ms
    tab.observe(*(("join", viewer, 1, again_ms) for viewer in range(1, 11)))
    assert tab.audience(again_ms) == 10
    # Two of the first time leave late, or are forgotten.
    tab.observe(("leave", 11, 1, again_ms))
    tab.state.forget("v11")
    assert tab.audience(again_ms) == 10
    tab.observe(*(("leave", viewer, 1, again_ms + 1) for viewer in range(1, 11)))
    assert tab.audience(again_ms + 1) == 0


def test_a_viewer_pushed_out_of_a_candidate_that_came_back_takes_nobody_along():
    tab = Tab(2)
    tab.observe(("join", 1, 1, 0))
    tab.renew(1)
    tab.observe(("join", 2, 1, 1), *(("join", 1, 1 + i, 1 + i) for i in range(1, PLACES + 1)))
    assert tab.audience(100) == 1


def test_a_viewer_hidden_by_a_wrong_time_takes_nobody_along():
    tab, now_ms = Tab(3), 1_800_000_000_000
    tab.observe(("join", 1, 1, now_ms), ("join", 2, 1, 2 * now_ms), ("join", 3, 1, now_ms + 1))
    tab.observe(("leave", 1, 1, now_ms + 2))
    assert tab.audience(now_ms + 2) == 1


def test_an_audience_is_not_negative_after_two_that_began_at_one_time():
    tab = Tab(2)
    tab.observe(("join", 1, 1, 100))
    tab.renew(1)
    tab.observe(("join", 2, 1, 100), ("leave", 1, 1, 101), ("leave", 2, 1, 101))
    assert tab.audience(101) == 0


def records(num_candidates, last_ms=3 * STAY_MS):
    return st.lists(
        st.tuples(
            st.sampled_from(["join", "join", "leave", "click"]),
            st.integers(0, 4),
            st.integers(0, num_candidates),
            st.integers(0, 40).map(lambda n: n * STEP_MS // 3) | st.integers(0, last_ms),
        ),
        max_size=60,
    )


MOVES = st.tuples(
    st.sampled_from(["join", "join", "leave", "renew"]), st.integers(1, 4), st.integers(-STEP_MS, STEP_MS)
)


@given(st.lists(MOVES, min_size=8, max_size=30))
@settings(deadline=None, max_examples=40)
def test_a_candidate_counts_those_who_came_since_it_was_added_last(moves):
    tab, latest, times, now_ms = Tab(4), {}, set(), STAY_MS
    for event, viewer, step_ms in moves:
        now_ms += step_ms
        if event == "renew":
            tab.renew(1)
            latest = {viewer: (ts_ms, "gone") for viewer, (ts_ms, _) in latest.items()}
        # Counts that begin at the same time are not told apart.
        elif now_ms not in times:
            times.add(now_ms)
            tab.observe((event, viewer, 1, now_ms))
            latest[viewer] = max(latest.get(viewer, (0, "")), (now_ms, event))
    newest = max(times, default=0)
    there = {
        viewer: newest // STEP_MS - ts_ms // STEP_MS
        for viewer, (ts_ms, event) in latest.items()
        if event == "join"
    }
    for steps in range(STEPS):
        inside = {viewer for viewer, age in there.items() if age + steps < STEPS}
        assert tab.audience(newest + steps * STEP_MS) == len(inside)
        assert tab.inside(newest + steps * STEP_MS)[0] == inside


@given(records(PLACES), st.randoms(), st.integers(1, 60))
@settings(deadline=None, max_examples=25)
def test_the_last_word_of_each_viewer_holds_in_whatever_order_it_comes(moves, random, length):
    now_ms, latest = 3 * STAY_MS, {}
    # Of equal times the later arrival holds: let no two be equal.
    moves = list({ts_ms: (event, v, c, ts_ms) for event, v, c, ts_ms in moves}.values())
    for event, v, c, ts_ms in moves:
        if v and c and event != "click":
            latest[v, c] = max(latest.get((v, c), (-1, "")), (ts_ms, event))
    wanted = [set() for _ in range(CANDIDATES)]
    for (v, c), (ts_ms, event) in latest.items():
        if event == "join" and now_ms // STEP_MS - ts_ms // STEP_MS < STEPS:
            wanted[c - 1].add(v)
    retried = moves + random.sample(moves, len(moves) // 2)
    random.shuffle(retried)
    tab = Tab(4)
    for begin in range(0, len(retried), length):
        tab.observe(*retried[begin : begin + length])
    assert tab.gauges(now_ms)[0] == list(map(len, wanted))
    assert tab.inside(now_ms) == wanted


@given(
    records(CANDIDATES) | records(CANDIDATES, 100 * STAY_MS),
    st.lists(st.integers(1, 4), max_size=3),
    st.integers(1, 60),
)
@settings(deadline=None, max_examples=25)
def test_an_audience_is_never_negative_nor_larger_than_its_viewers(moves, forgotten, length):
    tab, at_once = Tab(4), Tab(4)
    came, cuts = set(), sorted(forgotten)
    for event, v, c, ts_ms in moves:
        tab.observe((event, v, c, ts_ms))
        came |= {(v, c)} if v and c and event == "join" else set()
        for now_ms in (ts_ms, ts_ms + STAY_MS // 2):
            audiences, rooms = tab.gauges(now_ms)
            for number, audience in enumerate(audiences, start=1):
                assert 0 <= audience <= sum(c == number for _, c in came)
            assert list(map(len, tab.inside(now_ms))) == audiences
            assert max(rooms) <= PLACES
    for begin in range(0, len(moves), length):
        at_once.observe(*moves[begin : begin + length])
    for row in cuts:
        tab.state.forget(f"v{row - 1}")
        at_once.state.forget(f"v{row - 1}")
    assert tab.gauges(3 * STAY_MS) == at_once.gauges(3 * STAY_MS)
    assert tab.inside(3 * STAY_MS) == at_once.inside(3 * STAY_MS)
    assert not any(hash64(f"v{row - 1}").to_bytes(8, "little") in tab.packed() for row in cuts)


def test_a_candidate_knows_the_64_who_came_last():
    tab = Tab(100)
    tab.observe(*(("join", viewer, 1, 100 * viewer) for viewer in tab.viewers))
    assert tab.audience(10_000) == 100
    assert tab.inside(10_000)[0] == set(range(37, 101))
    # Who was pushed out stays unknown when others leave.
    tab.observe(*(("leave", viewer, 1, 10_001) for viewer in range(91, 101)))
    assert (tab.audience(10_001), tab.inside(10_001)[0]) == (90, set(range(37, 91)))
    tab.observe(*(("join", viewer, 1, 10_002) for viewer in range(1, 16)))
    assert (tab.audience(10_002), tab.inside(10_002)[0]) == (90, {*range(1, 16), *range(42, 91)})
    assert len(tab.inside(10_002)[0]) == NEWEST


@given(st.lists(st.tuples(st.sampled_from("jjl"), st.integers(1, 8), st.integers(0, STEP_MS)), max_size=60))
@settings(deadline=None, max_examples=25)
def test_those_who_came_last_are_known_in_a_candidate_with_more(moves):
    with mock.patch.object(gauge, "NEWEST", 3):
        tab, newest, came_ms, now_ms = Tab(8, Schema(SURFACE)), [], {}, STAY_MS
        for event, viewer, later_ms in moves:
            now_ms += later_ms
            tab.observe(("join" if event == "j" else "leave", viewer, 1, now_ms))
            newest = [each for each in newest if each != viewer]
            if event == "j":
                newest, came_ms[viewer] = [viewer, *newest][:3], now_ms
            inside = {each for each in newest if now_ms // STEP_MS - came_ms[each] // STEP_MS < STEPS}
            assert tab.inside(now_ms)[0] == inside


@given(records(PLACES) | records(PLACES, 100 * STAY_MS), st.integers(0, 20))
@settings(deadline=None, max_examples=25)
def test_nobody_is_known_who_is_not_there(moves, restored):
    with mock.patch.object(gauge, "NEWEST", 2):
        few, tab, now_ms = Tab(4, Schema(SURFACE)), Tab(4), 0
        for i, (event, v, c, ts_ms) in enumerate(moves):
            for each in (few, tab):
                each.observe((event, v, c, ts_ms))
            if i == restored:
                # A surface without friends has kept only the numbers.
                inside = gauge.Inside(SURFACE.features["friends"].slots[0])
                few.schema.kept(gauge.Presences).of(few.state.candidates.values["id"].table, inside)[
                    "viewers"
                ] = 0
            now_ms = max(now_ms, ts_ms)
            known = few.inside(now_ms)
            with mock.patch.object(gauge, "NEWEST", NEWEST):
                assert all(ours <= theirs for ours, theirs in zip(known, tab.inside(now_ms), strict=True))


def test_friends_who_came_by_other_events_are_kept_apart():
    clicked = OURS.replace("friends =", "clicked =").replace('up = "join"', 'up = "click"').splitlines()[1]
    tab = Tab(3, Schema(read_surface(TOML + OURS + clicked)))
    tab.observe(("join", 1, 1, STAY_MS), ("click", 2, 1, STAY_MS), ("click", 3, 2, STAY_MS))
    found = tab.read(STAY_MS)
    assert [column[:, :2].tolist() for column in (found["friends"], found["clicked"])] == [
        [[0, 0], [1, 0], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [1, 0], [0, 1]],
    ]
