from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.contract.errors import TabrankError
from serve.features.slots import F64, I64
from serve.features.surface import load_surface
from serve.log.reader import read_joined
from training.world.provenance import Provenance
from training.world.simulate import simulate
from training.world.world import Around, Audience, World

# Types of the columns that are not strings.
_TYPES = {
    "ts_ms": pa.int64(),
    "ends_ms": pa.int64(),
    "started_ms": pa.int64(),
    "speakers": pa.float64(),
    **dict.fromkeys(("follows", "friends", "guests"), pa.list_(pa.string())),
    "candidates": pa.list_(pa.string()),
    "context": pa.struct({"hour": pa.float64()}),
    **dict.fromkeys(("p_click", "p_join", "p_hide", "examination", "minutes"), pa.list_(pa.float64())),
}
_COLUMNS = {
    "viewers": ("id", "ts_ms", "language", "country", "device", "follows", "friends"),
    "candidates": ("id", "ts_ms", "ends_ms", "host", "topic", "language", "speakers", "started_ms", "guests"),
    "exposures": ("request_id", "ts_ms", "viewer", "candidates", "context"),
    "events": ("id", "ts_ms", "viewer", "candidate", "kind", "request_id"),
    "truth": ("request_id", "p_click", "p_join", "p_hide", "examination", "minutes"),
}
SCHEMAS = {
    table: pa.schema({name: _TYPES.get(name, pa.string()) for name in names})
    for table, names in _COLUMNS.items()
}
ROWS, DAYS = 33_000, 0.2
WINDOW_MS = 30 * 60_000
FAR_MS = 1 << 62


class Simulated:
    """Log read back as plain Python, without the simulator."""

    def __init__(self, folder: Path, summary: dict) -> None:
        self.folder, self.summary, self.made = folder, summary, Provenance.read(folder)
        tables = {name: pq.read_table(folder / f"{name}.parquet") for name in SCHEMAS}
        self.schemas = {name: table.schema for name, table in tables.items()}
        self.viewers = tables["viewers"].to_pylist()
        self.candidates = tables["candidates"].to_pylist()
        self.exposures = tables["exposures"].to_pylist()
        self.events = tables["events"].to_pylist()
        self.truth = tables["truth"].to_pylist()
        self.by_request = {exposure["request_id"]: exposure for exposure in self.exposures}
        self.started_ms: dict[str, int] = {}
        self.ends_ms: defaultdict[str, int] = defaultdict(lambda: FAR_MS)
        for row in self.candidates:
            self.started_ms[row["id"]] = row["started_ms"]
            if row["ends_ms"] is not None:
                self.ends_ms[row["id"]] = row["ends_ms"]

    def audiences(self) -> Iterator[tuple[dict, list[int]]]:
        """Yield each exposure with its candidates' audience, from the events strictly before it."""
        audience: Counter[str] = Counter()
        ahead = iter([*(e for e in self.events if e["kind"] in ("join", "leave")), None])
        event = next(ahead)
        for exposure in self.exposures:
            while event and event["ts_ms"] < exposure["ts_ms"]:
                audience[event["candidate"]] += 1 if event["kind"] == "join" else -1
                event = next(ahead)
            yield exposure, [audience[candidate] for candidate in exposure["candidates"]]

    def times(self, kind: str) -> dict[tuple[str, str], int]:
        return {(e["request_id"], e["candidate"]): e["ts_ms"] for e in self.events if e["kind"] == kind}


def run(out: Path, *, rows=ROWS, viewers=None, days=DAYS, progress=lambda share: None, **given) -> Simulated:
    return Simulated(out, simulate(out, rows=rows, viewers=viewers, days=days, progress=progress, **given))


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Simulated:
    return run(tmp_path_factory.mktemp("simulated") / "log")


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    first, second = (run(tmp_path / name, rows=3_000) for name in ("first", "second"))
    for name in SCHEMAS:
        file = f"{name}.parquet"
        assert (first.folder / file).read_bytes() == (second.folder / file).read_bytes()


def test_another_seed_gives_another_world(tmp_path):
    first, second = (run(tmp_path / f"seed{seed}", rows=3_000, seed=seed) for seed in (0, 1))
    assert first.viewers != second.viewers
    assert first.candidates != second.candidates
    assert first.events != second.events


def test_the_tables_have_the_types_of_the_canonical_log(log):
    assert log.schemas == SCHEMAS
    assert all(viewer["ts_ms"] is None and len(viewer["follows"]) <= 32 for viewer in log.viewers)
    for rows, key in ((log.viewers, "id"), (log.exposures, "request_id"), (log.events, "id")):
        assert len({row[key] for row in rows}) == len(rows)
    for rows in (log.candidates, log.exposures, log.events):
        assert all(a["ts_ms"] <= b["ts_ms"] for a, b in itertools.pairwise(rows))


def test_the_log_reader_accepts_it_and_finds_no_unknown_id(log):
    said = []
    read_joined(log.folder, load_surface("spaces"), said.append)
    assert said[0].count("100.0% of") == 3
    # Nothing is said of duplicates.
    assert len(said) == 1


def test_the_summary_counts_what_was_written(log):
    summary = log.summary
    assert summary["rows"] == sum(len(e["candidates"]) for e in log.exposures) == ROWS
    assert summary["viewers"] == len(log.viewers)
    assert summary["candidates"] == len(log.started_ms)
    assert summary["seconds"] > 0


def test_rows_come_in_slates_of_distinct_candidates(log):
    assert {len(e["candidates"]) for e in log.exposures} == {55}
    assert all(len(set(e["candidates"])) == 55 for e in log.exposures)


def test_every_shown_candidate_is_live(log):
    for exposure in log.exposures:
        for candidate in exposure["candidates"]:
            assert log.started_ms[candidate] < exposure["ts_ms"] < log.ends_ms[candidate]


def test_exposures_are_sorted_by_the_audience_from_events_strictly_before(log):
    biggest = 0
    for _, shown in log.audiences():
        assert shown == sorted(shown, reverse=True)
        biggest = max(biggest, shown[0])
    assert biggest >= 5, "an order of zeros proves nothing"


def test_a_viewer_is_not_shown_a_space_that_they_are_in(log):
    joins, leaves = log.times("join"), log.times("leave")
    stays = defaultdict(list)
    for (request_id, candidate), join_ms in joins.items():
        viewer = log.by_request[request_id]["viewer"]
        stays[viewer, candidate].append((join_ms, leaves.get((request_id, candidate), FAR_MS)))
    for exposure in log.exposures:
        for candidate in exposure["candidates"]:
            for join_ms, leave_ms in stays[exposure["viewer"], candidate]:
                assert not join_ms <= exposure["ts_ms"] <= leave_ms


def test_a_viewer_is_not_shown_again_what_they_hid(log):
    hidden_ms = {}
    for request_id, candidate in log.times("hide"):
        exposure = log.by_request[request_id]
        hidden_ms[exposure["viewer"], candidate] = exposure["ts_ms"]
    for exposure in log.exposures:
        for candidate in exposure["candidates"]:
            assert exposure["ts_ms"] <= hidden_ms.get((exposure["viewer"], candidate), FAR_MS)


def test_events_name_the_viewer_and_a_candidate_of_their_exposure(log):
    for event in log.events:
        exposure = log.by_request[event["request_id"]]
        assert event["viewer"] == exposure["viewer"]
        assert event["candidate"] in exposure["candidates"]


def test_clicks_and_hides_follow_within_a_minute_and_joins_within_the_window(log):
    clicks, joins, hides = (log.times(kind) for kind in ("click", "join", "hide"))
    assert hides
    assert not hides.keys() & clicks.keys(), "who hides a room does not click it"
    for (request_id, _), ts_ms in (clicks | hides).items():
        assert 1_000 <= ts_ms - log.by_request[request_id]["ts_ms"] <= 60_000
    for key, join_ms in joins.items():
        assert clicks[key] < join_ms <= log.by_request[key[0]]["ts_ms"] + WINDOW_MS


def test_leaves_follow_joins_and_nothing_follows_the_end_of_a_space(log):
    joins, leaves = log.times("join"), log.times("leave")
    assert all(joins[key] < leave_ms for key, leave_ms in leaves.items())
    assert all(event["ts_ms"] <= log.ends_ms[event["candidate"]] for event in log.events)
    stayed = joins.keys() - leaves.keys()
    assert all(log.ends_ms[candidate] == FAR_MS for _, candidate in stayed), "all leave at the end"


def test_a_space_does_not_tell_its_end_before_it_ends(log):
    rows = defaultdict(list)
    for row in log.candidates:
        rows[row["id"]].append(row)
    changed = 0
    for versions in rows.values():
        first, last = versions[0], versions[-1]
        assert first["ts_ms"] == first["started_ms"]
        assert first["ends_ms"] is None
        assert all(row["ends_ms"] is None for row in versions[:-1])
        assert last["ends_ms"] in (None, last["ts_ms"])
        for name in ("host", "topic", "language", "started_ms", "guests"):
            assert all(row[name] == first[name] for row in versions)
        changed += len({row["speakers"] for row in versions}) > 1
    assert changed > 0, "speakers come up on stage"


def test_a_host_has_one_space_at_a_time(log):
    spaces = defaultdict(set)
    for row in log.candidates:
        spaces[row["host"]].add((row["started_ms"], log.ends_ms[row["id"]]))
    for times in map(sorted, spaces.values()):
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(times))


def test_at_least_200_spaces_are_still_live_at_the_end(log):
    assert sum(log.ends_ms[space] == FAR_MS for space in log.started_ms) >= 200


@pytest.fixture(scope="module")
def cascade(tmp_path_factory) -> Simulated:
    return run(tmp_path_factory.mktemp("simulated") / "cascade", examination="cascade")


@pytest.mark.parametrize("kind", ["log", "cascade"])
def test_the_truth_is_aligned_and_the_events_agree_with_it(kind, request):
    log = request.getfixturevalue(kind)
    joins, clicks, hides = (log.times(kind) for kind in ("join", "click", "hide"))
    closed_ms = log.made.end_ms - WINDOW_MS
    rows = []
    names = ("p_click", "p_join", "p_hide", "examination")
    for exposure, truth in zip(log.exposures, log.truth, strict=True):
        assert truth["request_id"] == exposure["request_id"]
        if exposure["ts_ms"] < closed_ms:
            for candidate, *chances in zip(exposure["candidates"], *map(truth.get, names), strict=True):
                key = (exposure["request_id"], candidate)
                rows.append((*chances, key in clicks, key in joins, key in hides))
    p_click, p_join, p_hide, examination, *happened = np.array(rows, dtype=float).T
    assert (p_join > 0).all()
    assert (p_join < p_click).all()
    assert (p_hide > 0).all()
    assert (p_click + p_hide < 1).all()
    assert (examination > 0).all()
    assert (examination <= 1).all()
    for chance, events in zip((p_click, p_join, p_hide), happened, strict=True):
        p = chance * examination
        # Compare overall, and separately for likely and unlikely rows, high and low positions.
        for part in (p >= 0, p > np.median(p), p <= np.median(p), examination > 0.5, examination <= 0.5):
            noise = np.sqrt((p * (1 - p))[part].sum())
            assert abs(events[part].sum() - p[part].sum()) < 4 * noise


@pytest.mark.parametrize(
    ("curve", "at_0_5_6_13_14"), [("steps", [0.95, 0.95, 0.35, 0.35, 0.12]), ("none", [1] * 5)]
)
def test_examination_follows_the_curve_given_and_goes_on_with_it(tmp_path, curve, at_0_5_6_13_14):
    found = run(tmp_path / curve, rows=3_000, examination=curve)
    shown = [row["examination"] for row in found.truth]
    assert all(row[: len(shown[0])] == shown[0] for row in shown if len(row) >= len(shown[0]))
    assert np.array(shown[0])[[0, 5, 6, 13, 14]] == pytest.approx(at_0_5_6_13_14)
    assert Provenance.read(found.folder).world().curve == curve


def test_in_a_cascade_a_join_hides_what_is_below_it(cascade):
    """Against the same positions and P(click) of slates without a join above."""
    joins, clicks = cascade.times("join"), cascade.times("click")
    happened = expected = 0.0
    for exposure, truth in zip(cascade.exposures, cascade.truth, strict=True):
        keys = [(exposure["request_id"], candidate) for candidate in exposure["candidates"]]
        first = next((at for at, key in enumerate(keys) if key in joins), None)
        if first is not None:
            below = slice(first + 1, first + 20)
            happened += sum(key in clicks for key in keys[below])
            expected += sum(np.array(truth["p_click"])[below] * np.array(truth["examination"])[below])
    assert happened < 0.4 * expected


def test_an_order_with_a_hidden_signal_follows_the_join_and_not_the_audience(tmp_path):
    found = run(tmp_path / "log", rows=3_000, unkind=("hidden",))
    places = np.arange(55)
    rank = [
        np.corrcoef(places, np.argsort(np.argsort(-np.array(row["p_join"]))))[0, 1] for row in found.truth
    ]
    assert np.mean(rank) > 0.8
    assert Provenance.read(found.folder).world().unkind == ("hidden",)


def test_late_joins_come_after_the_labels_window(log, tmp_path):
    late = run(tmp_path / "log", days=1.0, unkind=("late",))
    for found, least, most in ((log, 0.0, 0.0), (late, 0.1, 0.6)):
        shown_ms = {exposure["request_id"]: exposure["ts_ms"] for exposure in found.exposures}
        after_ms = np.array([ms - shown_ms[request] for (request, _), ms in found.times("join").items()])
        assert least <= (after_ms > WINDOW_MS).mean() <= most
        assert all(ms > 0 for ms in after_ms)


def test_stays_last_on_average_as_long_as_the_truth_says(log):
    joins, leaves = log.times("join"), log.times("leave")
    # In the last 70 minutes a stay may be longer than the log can tell.
    closed_ms = log.made.end_ms - 70 * 60_000
    pairs = []
    for exposure, truth in zip(log.exposures, log.truth, strict=True):
        for candidate, minutes in zip(exposure["candidates"], truth["minutes"], strict=True):
            key = (exposure["request_id"], candidate)
            if key in joins and exposure["ts_ms"] < closed_ms:
                left_ms = leaves.get(key, FAR_MS)
                pairs.append((minutes, min(60.0, (left_ms - joins[key]) / 60_000)))
    expected, stayed = np.array(pairs).T
    for part in (expected > 0, expected > np.median(expected), expected <= np.median(expected)):
        noise = stayed[part].std() / np.sqrt(part.sum())
        assert abs(stayed[part].mean() - expected[part].mean()) < 4 * noise
    assert expected.std() > 5


def test_few_joins_are_the_price_of_many_fewer_hides(log):
    """Ordered by the truth, with a hide worth minus 50 joins and minus nothing."""
    earned = np.zeros((2, 2))
    looked = 1 / (1 + np.arange(55) / 12)
    for row in log.truth:
        p_join, p_hide = np.array(row["p_join"]), np.array(row["p_hide"])
        for worth, at in ((0, 0), (-50, 1)):
            order = np.argsort(-(p_join + worth * p_hide))
            earned[at] += looked @ p_join[order], looked @ p_hide[order]
    joins, hides = earned[1] / earned[0] - 1
    assert -0.04 < joins < 0
    assert hides < -0.4
    p_hide, examination = (np.hstack([row[name] for row in log.truth]) for name in ("p_hide", "examination"))
    assert 0.003 < np.average(p_hide, weights=examination) < 0.01
    assert np.sort(p_hide)[-len(p_hide) // 10 :].sum() > 0.8 * p_hide.sum(), "a few rooms are hidden most"


@pytest.mark.parametrize(
    "altered", [{"examination": "cubic"}, {"seed": "seven"}, {"colour": 1}, {"version": 2}, {"version": None}]
)
def test_a_world_of_another_version_is_refused_with_the_remedy(log, tmp_path, altered):
    with pytest.raises(TabrankError, match=r"world is unknown: .*No such file"):
        Provenance.read(tmp_path)
    values = json.loads((log.folder / "world.json").read_text())
    (tmp_path / "world.json").write_text(json.dumps(values | altered))
    with pytest.raises(
        TabrankError, match=rf"world is unknown: .*{next(iter(altered))}.*; simulate it again"
    ):
        Provenance.read(tmp_path)


def test_a_log_from_before_worlds_had_a_version_is_refused(log, tmp_path):
    values = json.loads((log.folder / "world.json").read_text())
    del values["version"]
    (tmp_path / "world.json").write_text(json.dumps(values))
    with pytest.raises(TabrankError, match=r"world is unknown: .*version.*; simulate it again"):
        Provenance.read(tmp_path)


def test_the_truth_is_the_process_with_tastes_that_follow_joins(log):
    """Against friends inside and showings passed over that are found again from the log alone."""
    world = log.made.world()
    friends = {viewer["id"]: viewer["friends"] for viewer in log.viewers}
    joins, leaves, clicks = log.times("join"), log.times("leave"), log.times("click")
    stays = defaultdict(list)
    for (request_id, candidate), join_ms in joins.items():
        viewer = log.by_request[request_id]["viewer"]
        stays[viewer, candidate].append((join_ms, leaves.get((request_id, candidate), FAR_MS)))
    passed = defaultdict(list)
    has_joined: set[str] = set()
    joined = {request_id for request_id, _ in joins}
    risen, most_friends, most_recalled = [], 0, 0.0
    for (exposure, audience), truth in zip(log.audiences(), log.truth, strict=True):
        viewer, now_ms, shown = exposure["viewer"], exposure["ts_ms"], exposure["candidates"]
        inside = [
            sum(
                start < now_ms <= end for friend in friends[viewer] for start, end in stays[friend, candidate]
            )
            for candidate in shown
        ]
        traces = [
            sum(
                looked / np.sqrt((now_ms - then_ms) / 60_000) for then_ms, looked in passed[viewer, candidate]
            )
            for candidate in shown
        ]
        recalled = [trace and 1 / (1 + (1 / (trace * np.sqrt(120))) ** (1 / 0.4)) for trace in traces]
        most_friends, most_recalled = max(most_friends, *inside), max(most_recalled, *recalled)
        space = np.array([int(candidate[1:]) for candidate in shown])
        around = Around(np.array(audience), np.array(inside), np.array(recalled))
        p_click, _, p_hide = world.probabilities(int(viewer[1:]), space, now_ms, around)
        if viewer in has_joined:
            risen.append(np.array(truth["p_click"]) - p_click)
        else:
            np.testing.assert_allclose(truth["p_click"], p_click, rtol=1e-12)
            np.testing.assert_allclose(truth["p_hide"], p_hide, rtol=1e-12)
        if exposure["request_id"] in joined:
            has_joined.add(viewer)
        for candidate, looked in zip(shown, truth["examination"], strict=True):
            if (exposure["request_id"], candidate) not in clicks:
                passed[viewer, candidate].append((now_ms, looked))
    assert np.min(risen) > -1e-12
    assert np.max(risen) > 0.01
    assert most_friends >= 2
    assert most_recalled > 0.8


START_MS, HOUR_MS = 1_767_571_200_000, 3_600_000


def new_world(viewers: int) -> tuple[World, int, I64]:
    """Return a world of an hour, a time in it, and the Spaces that are live then."""
    world = World(seed=3, viewers=viewers, start_ms=START_MS, end_ms=START_MS + HOUR_MS)
    now_ms = START_MS + HOUR_MS // 2
    return world, now_ms, world.spaces.live(now_ms)


def alone(space: I64) -> Around:
    """Return that nobody is in these Spaces, and that the viewer recalls none of them."""
    return Around(*np.zeros((2, len(space)), np.int64), np.zeros(len(space)))


def odds(p: F64) -> F64:
    return p / (1 - p)


def test_viewers_take_to_their_language_their_topics_and_whom_they_follow():
    world, now_ms, live = new_world(400)
    viewer, space = (grid.ravel() for grid in np.meshgrid(np.arange(400), live, indexing="ij"))
    chances = [world.probabilities(who, live, now_ms, alone(live)) for who in range(400)]
    p_click, p_join, _ = np.hstack(chances)
    mine = world.spaces.language[space] == world.viewers.language[viewer]
    liked = world.viewers.tastes[viewer, world.spaces.topic[space]] > 1
    follows = [world.follows(who, live) for who in range(400)]
    followed, num_guests = map(np.concatenate, zip(*follows, strict=True))
    # Vary each alone, because a viewer who follows a host tends to share its language and topics.
    for flag, rest in ((mine, ~liked & ~followed), (liked, mine & ~followed), (followed, mine & ~liked)):
        for p in (p_click, p_join):
            assert p[flag & rest].mean() > 2 * p[~flag & rest].mean()
    guests, rest = num_guests > 0, mine & ~liked & ~followed
    for p in (p_click, p_join):
        assert p[guests & rest].mean() > 1.3 * p[~guests & rest].mean()


def test_bait_is_clicked_and_joined_more_but_left_earlier_and_hidden():
    world, now_ms, live = new_world(20)
    host = world.spaces.host[live]

    def chances(bait):
        """Return the odds of click, join and hide, and the median minutes."""
        world.hosts.bait[host] = bait
        return *map(odds, world.probabilities(7, live, now_ms, alone(live))), np.exp(
            world.log_minutes(7, live)
        )

    honest, bait = chances(0.0), chances(1.0)
    for before, after, factor in zip(honest, bait, (1.5, 1.5, 20, 1), strict=True):
        assert (after > factor * before).all() if factor > 1 else (after < 0.5 * before).all()
    # Whom the topic pleases hides less, and stays longer.
    world.viewers.tastes[7] += 1.0
    pleased = chances(1.0)
    assert (pleased[2] < 0.8 * bait[2]).all()
    assert (pleased[3] > 1.5 * bait[3]).all()
    mine = world.spaces.language[live] == world.viewers.language[7]
    tastes = world.viewers.tastes
    tastes[7] = 0.0
    hide = chances(1.0)[2]
    assert hide[mine].mean() < 0.8 * hide[~mine].mean()


def test_friends_inside_attract_and_the_first_does_most():
    world, now_ms, live = new_world(20)
    nobody = alone(live)
    none, one, two, many = (
        np.array(world.probabilities(7, live, now_ms, nobody._replace(friends=nobody.friends + num))[:2])
        for num in (0, 1, 2, 20)
    )
    assert (odds(one) > 1.2 * odds(none)).all()
    assert ((two > one) & (two - one < 0.7 * (one - none))).all()
    # All of them together do no more than one invitation.
    assert (odds(many) < 9 * odds(none)).all()


def test_what_a_viewer_passed_over_attracts_less_until_it_is_forgotten():
    """Half of the memory's activation is left after four times the time, however long that is."""
    world, now_ms, live = new_world(20)
    audience, shown = Audience(len(world.spaces), world.viewers.friends), live[:40]
    before = world.probabilities(7, shown, now_ms, audience.around(7, shown, now_ms))[:2]
    response = world.respond(np.random.default_rng(0), 7, shown, now_ms, audience)
    response = replace(response, clicked=np.arange(len(shown)) % 5 == 0)
    audience.add(7, shown, now_ms, response)
    minutes = np.array([1, 4, 16, 64, 256])
    recalled = np.array([audience.around(7, shown, now_ms + 60_000 * after).recalled for after in minutes])
    assert (recalled[:, response.clicked] == 0).all()
    # Of what is high up, more is recalled.
    passed = recalled[:, ~response.clicked]
    assert (np.diff(passed, axis=1) < 0).all()
    np.testing.assert_allclose(odds(passed[:-1]) / odds(passed[1:]), 2 ** (1 / 0.4))
    after = world.probabilities(7, shown, now_ms, audience.around(7, shown, now_ms + 60_000))[:2]
    # The first of them.
    assert (odds(np.array(after))[:, 1] < 0.5 * odds(np.array(before))[:, 1]).all()
    # Another viewer has seen none of it.
    assert (audience.around(8, shown, now_ms).recalled == 0).all()


def test_a_room_that_is_good_now_may_be_bad_in_an_hour_but_not_in_a_minute():
    world, now_ms, live = new_world(20)
    now, soon, later = (world.spaces.quality_at(live, now_ms + after) for after in (0, 60_000, HOUR_MS))
    fixed = world.spaces.quality[live]
    assert np.corrcoef(now - fixed, soon - fixed)[0, 1] > 0.9
    assert abs(np.corrcoef(now - fixed, later - fixed)[0, 1]) < 0.4
    # Most of what makes a room good is its host.
    assert np.corrcoef(world.hosts.quality[world.spaces.host], world.spaces.quality)[0, 1] > 0.8


def test_friends_speak_the_viewers_language_and_like_the_same():
    world, *_ = new_world(2_000)
    viewers = world.viewers
    viewer, at = np.nonzero(viewers.friends >= 0)
    friend = viewers.friends[viewer, at]
    assert (viewer != friend).all()
    assert len({*zip(viewer, friend, strict=True)}) == len(viewer)
    assert 0.7 < (viewers.language[viewer] == viewers.language[friend]).mean() < 0.98
    stranger = np.random.default_rng(0).permutation(friend)
    alike = [(viewers.tastes[viewer] * viewers.tastes[who]).sum(axis=1).mean() for who in (friend, stranger)]
    assert alike[0] > 1.3 * alike[1]
    num = np.bincount(viewer)
    assert np.percentile(num, 95) > 3 * np.median(num)
    assert num.max() <= 32


def test_guests_are_other_hosts_who_speak_the_language():
    world, *_ = new_world(20)
    spaces = world.spaces
    space, at = np.nonzero(spaces.guests >= 0)
    guest = spaces.guests[space, at]
    assert (guest != spaces.host[space]).all()
    assert (world.hosts.language[guest] == spaces.language[space]).all()
    num = np.bincount(space, minlength=len(spaces))
    assert len({*zip(space, guest, strict=True)}) == len(space)
    assert (num < spaces.speakers).all()
    assert 0.4 < (num > 0).mean() < 0.8
    assert num.max() <= 4


def test_a_join_moves_the_taste_for_its_topic_and_no_other():
    world, *_ = new_world(2)
    before = world.viewers.tastes.copy()
    world.update_tastes(1, np.array([5]))
    moved = np.argwhere(world.viewers.tastes != before)
    np.testing.assert_array_equal(moved, [[1, world.spaces.topic[5]]])
    assert world.viewers.tastes.sum() > before.sum()


def test_the_number_of_viewers_can_be_given(tmp_path):
    assert len(run(tmp_path / "log", rows=3_000, viewers=7).viewers) == 7


def test_progress_rises_to_one(tmp_path):
    shares: list[float] = []
    run(tmp_path / "log", rows=60_000, days=0.05, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    assert len(shares) > 2


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("rows", 0),
        ("viewers", 0),
        ("days", 0.0),
        ("days", float("nan")),
        ("days", float("inf")),
    ],
)
def test_an_impossible_argument_is_refused_by_name(tmp_path, argument, value):
    with pytest.raises(TabrankError, match=rf"--{argument}: {value:g} must be from"):
        run(tmp_path / "log", **{argument: value})
    assert list(tmp_path.iterdir()) == []


def test_a_world_in_which_nothing_happens_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(TabrankError, match="give more of either"):
        run(tmp_path / "log", rows=1, days=0.00002)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    out = tmp_path / "log"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(TabrankError, match="exists already"):
        run(out, rows=1_000)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert list(tmp_path.iterdir()) == [out]


def test_the_request_beside_the_log_names_what_is_live_at_its_end(log):
    request = json.loads((log.folder / "request.json").read_text())
    ids = pq.read_table(log.folder / "candidates.parquet")["id"].to_pylist()
    assert len(request["candidates"]) == request["limit"] == 5
    # The README tries it on a service, which must not train on it.
    assert request["traffic"] == "test"
    assert set(request["candidates"]) <= set(ids)
    (event,) = json.loads((log.folder / "event.json").read_text())["records"]
    assert (event["viewer"], event["candidate"]) == (request["viewer"], request["candidates"][-1])
    assert request["viewer"] in pq.read_table(log.folder / "viewers.parquet")["id"].to_pylist()
