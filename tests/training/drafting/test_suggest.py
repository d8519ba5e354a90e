"""What is suggested for candidates that have no events yet, and the figures that speak for it."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log.reader import read_log
from serve.log.writer import write_log
from tests.support.small_surface import STRINGS
from training.data.dataset import build
from training.drafting.draft import draft
from training.drafting.funnel import COUNTED_POSITIVES, funnel
from training.drafting.leakage import without_leaks
from training.drafting.profile import profile, read_tables
from training.drafting.suggest import suggest
from training.evaluation.slates import auc

START_MS = 1_700_000_000_000
MINUTE_MS = 60_000
EXPOSURES, PER = 3_000, 4
VIEWERS, ROOMS = 50, 600
DAY = 1_440


def rooms(*, stay=30, hosts=60, hosts_differ=True, gap=10, returns=True, leaves=True) -> dict[str, pa.Table]:
    """Return a log of a day: each room is shown for `stay` minutes; who joins depends on its host.

    Joins come in `gap` minutes after the ranking. A viewer `returns` with the same candidates.
    """
    rng = np.random.default_rng(0)
    minute = np.sort(rng.uniform(0, DAY, EXPOSURES))
    begins = np.linspace(-stay, DAY, ROOMS) if stay < DAY else np.zeros(ROOMS)
    host = rng.integers(0, hosts, ROOMS)
    quality = rng.uniform(0.02, 0.5, hosts) if hosts_differ else np.full(hosts, 0.25)
    viewer = rng.integers(0, VIEWERS, EXPOSURES) if returns else np.arange(EXPOSURES)
    shown, events = [], []
    for i in range(EXPOSURES):
        live = np.flatnonzero((begins <= minute[i]) & (minute[i] <= begins + stay))
        slate = rng.choice(live, min(PER, len(live)), replace=False)
        shown.append([f"r{room}" for room in slate])
        for room in slate[rng.random(len(slate)) < quality[host[slate]]]:
            at = minute[i] + rng.uniform(0.1, gap)
            events += [(f"v{viewer[i]}", f"r{room}", "join", at)]
            events += [(f"v{viewer[i]}", f"r{room}", "leave", at + 5)] if leaves else []
    people = [f"v{i}" for i in range(max(viewer) + 1)]
    topics, tags = [f"t{i}" for i in range(200)], ["live", "new", "chat", "music"]

    def sets(values, num, size):
        return pa.array([rng.choice(values, size, replace=False).tolist() for _ in range(num)], STRINGS)

    def at_ms(minutes):
        return [START_MS + round(MINUTE_MS * each) for each in minutes]

    return {
        "viewers": pa.table(
            {
                "id": people,
                "friends": sets([*people[:VIEWERS], "x1", "x2"], len(people), 8),
                "likes": sets(topics[:150], len(people), 5),
            }
        ),
        "candidates": pa.table(
            {
                "id": [f"r{i}" for i in range(ROOMS)],
                "host": [f"h{i}" for i in host],
                "mood": rng.choice(["calm", "loud"], ROOMS).tolist(),
                "tags": sets(tags, ROOMS, 2),
                "topics": sets(topics, ROOMS, 3),
            }
        ),
        "exposures": pa.table(
            {
                "request_id": [f"q{i}" for i in range(EXPOSURES)],
                "ts_ms": at_ms(minute),
                "viewer": [f"v{i}" for i in viewer],
                "candidates": pa.array(shown, STRINGS),
            }
        ),
        "events": pa.table(
            {
                "id": [f"e{i}" for i in range(len(events))],
                "ts_ms": at_ms(at for *_, at in events),
                "viewer": [v for v, *_ in events],
                "candidate": [c for _, c, *_ in events],
                "kind": [kind for *_, kind, _ in events],
            }
        ),
    }


def suggested(folder, parts):
    """Return the suggested features of a log by name."""
    write_log(folder / "log", parts)
    tables, _ = read_tables(folder / "log")
    events = funnel(tables)
    features, _ = suggest(without_leaks(profile(tables), tables, events), tables, events)
    return {feature.name: feature for feature in features}


def plain(feature):
    """Return a feature's spec without its words."""
    return {key: value for key, value in feature.spec.items() if key != "describe"}


def test_what_tells_a_new_room_apart_is_suggested_with_a_figure_of_the_log(tmp_path):
    found = suggested(tmp_path, rooms())
    rate = plain(found["host_join_rate"])
    assert (rate["entity"], rate["event"], rate["half_life"]) == ("candidate.host", "join", "7d")
    assert found["host_join_rate"].comment == (
        "10.0 candidates share a value; their rate without its own has AUC 0.71"
    )
    pair = {"entity": ["viewer", "candidate"], "event": "impression"}
    assert plain(found["shown_before"]) == {"kind": "count", **pair, "transform": "log1p"}
    assert found["shown_before"].comment.startswith("18% of the rows show one of the viewer's last 64")
    assert plain(found["since_shown"]) == {"kind": "recency", **pair, "transform": "log1p"}
    joined = {"kind": "recency", "entity": "candidate", "event": "join", "transform": "log1p"}
    assert plain(found["since_join"]) == joined
    assert "within 2 min 45 s of the one before" in found["since_join"].comment
    shared = {"kind": "overlap", "viewer": "viewer.likes", "candidate": "candidate.topics"}
    assert plain(found["shared_topics"]) == shared
    assert found["shared_topics"].comment == "they share 123 values"
    inside = {"kind": "friends", "viewer": "viewer.friends", "up": "join", "down": "leave"}
    assert plain(found["friends_inside"]) == inside
    assert found["friends_inside"].comment == "96% of its values are ids of viewers"


def test_a_field_that_tells_nothing_of_other_candidates_has_no_rate(tmp_path):
    """Moods are drawn at random, and here hosts do not matter either."""
    found = suggested(tmp_path, rooms(hosts_differ=False))
    assert not {"host_join_rate", "mood_join_rate"} & found.keys()


def test_a_field_that_few_candidates_share_has_no_rate(tmp_path):
    assert "host_join_rate" not in suggested(tmp_path, rooms(hosts=400))


def test_a_field_that_tells_nearly_everything_has_no_rate_and_takes_no_place(tmp_path):
    """An outcome is written after the ranking."""
    parts = rooms(stay=2 * DAY)
    ids, hosts = (parts["candidates"][name].to_pylist() for name in ("id", "host"))
    is_full = [(int(host[1:]) + (i % 5 == 0)) % 2 == 1 for i, host in enumerate(hosts)]
    parts["candidates"] = parts["candidates"].append_column(
        "outcome", pa.array(["full" if each else "empty" for each in is_full])
    )
    # Every viewer of such a room joins.
    full = {room for room, each in zip(ids, is_full, strict=True) if each}
    exposures = parts["exposures"].to_pylist()
    joins = [(e["viewer"], room, e["ts_ms"] + 1_000) for e in exposures for room in e["candidates"]]
    joins = [join for join in joins if join[1] in full]
    columns = dict(zip(("viewer", "candidate", "ts_ms"), zip(*joins, strict=True), strict=True))
    numbered = {"id": [f"e{i}" for i in range(len(joins))], "kind": ["join"] * len(joins)}
    parts["events"] = pa.table({**numbered, **{name: list(each) for name, each in columns.items()}})
    found = suggested(tmp_path, parts)
    assert "outcome_join_rate" not in found
    assert "host_join_rate" in found


def test_of_candidates_that_come_and_go_at_most_two_fields_have_a_rate(tmp_path):
    parts = rooms()
    hosts = np.array([int(h[1:]) for h in parts["candidates"]["host"].to_pylist()])
    for name, groups in (("show", 30), ("station", 20)):
        parts["candidates"] = parts["candidates"].append_column(
            name, pa.array([f"{name} {host % groups}" for host in hosts])
        )
    rates = [f for f in suggested(tmp_path, parts).values() if "." in str(f.spec.get("entity"))]
    assert [f.spec["entity"] for f in rates] == ["candidate.host", "candidate.show"]


def test_of_candidates_that_stay_one_field_has_a_rate_and_joins_at_random_no_recency(tmp_path):
    parts = rooms(stay=2 * DAY, gap=100)
    parts["candidates"] = parts["candidates"].append_column("channel", parts["candidates"]["host"])
    found = suggested(tmp_path, parts)
    assert sum("." in str(f.spec.get("entity")) for f in found.values()) == 1
    assert "since_join" not in found


def test_of_candidates_that_stay_bursts_of_joins_have_a_recency(tmp_path):
    parts = rooms(stay=2 * DAY)
    events = parts["events"].to_pandas()
    # A friend joins soon after most viewers, who then join as well.
    again = events[events["kind"] == "join"].copy()
    for i in range(1, 4):
        more = again.assign(ts_ms=again["ts_ms"] + 1_000 * i, id=[f"b{i}-{e}" for e in again["id"]])
        parts["events"] = pa.concat_tables(
            [parts["events"], pa.Table.from_pandas(more, preserve_index=False)], promote_options="permissive"
        )
    found = suggested(tmp_path, parts)
    assert (
        found["since_join"].comment == "half of a candidate's join events come within 1 s of the one before"
    )


def test_viewers_who_do_not_return_have_no_features_of_the_pair(tmp_path):
    assert not {"shown_before", "since_shown"} & suggested(tmp_path, rooms(returns=False)).keys()


def test_friends_need_events_that_come_and_go_and_ids_of_viewers(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert "friends_inside" not in suggested(tmp_path / "a", rooms(leaves=False))
    parts = rooms()
    strangers = pa.array([[f"x{i}", f"x{i + 1}"] for i in range(VIEWERS)], STRINGS)
    parts["viewers"] = parts["viewers"].set_column(1, "friends", strangers)
    assert "friends_inside" not in suggested(tmp_path / "b", parts)


def test_a_field_that_requests_state_has_no_rate(tmp_path):
    """No event knows what a request stated."""
    parts = rooms()
    host = dict(zip(*(parts["candidates"][name].to_pylist() for name in ("id", "host")), strict=True))
    stated = [
        json.dumps({c: {"host": host[c]} for c in slate})
        for slate in parts["exposures"]["candidates"].to_pylist()
    ]
    parts["candidates"] = parts["candidates"].drop_columns("host")
    parts["exposures"] = parts["exposures"].append_column("stated", pa.array(stated))
    assert "host_join_rate" not in suggested(tmp_path, parts)


def test_the_draft_of_rooms_has_these_features_and_they_differ_between_rows(tmp_path):
    write_log(tmp_path / "log", rooms())
    surface = read_surface(draft(tmp_path / "log").text)
    data = build(Schema(surface), read_log(tmp_path / "log", surface))
    new = ("host_join_rate", "since_join", "shown_before", "since_shown", "shared_topics", "friends_inside")
    for name in new:
        values = data.matrix.numeric[:, data.columns.numeric.index(name)]
        assert np.nanmax(values) > np.nanmin(values), name
    hosts = data.matrix.numeric[:, data.columns.numeric.index("host_join_rate")]
    # The record of hosts tells of their new rooms, too.
    is_new = data.candidate_seen == 0
    assert auc(data.label[is_new], hosts[is_new]) > 0.6


def test_a_ranking_remembers_the_whole_ranking_before_it(tmp_path):
    """Each viewer is shown the same 60 rooms again and again, in turns from either end."""
    parts = rooms()
    some = [f"r{i}" for i in range(60)]
    shown = pa.array([some[:: (-1) ** (i // VIEWERS)] for i in range(EXPOSURES)], STRINGS)
    viewer = pa.array([f"v{i % VIEWERS}" for i in range(EXPOSURES)])
    parts["exposures"] = parts["exposures"].set_column(2, "viewer", viewer).set_column(3, "candidates", shown)
    found = suggested(tmp_path, parts)
    # All but the first ranking of each viewer.
    assert found["shown_before"].comment.startswith("98% of the rows show one of the viewer's last 64")


@pytest.mark.filterwarnings("error")
def test_events_that_only_repeat_are_no_burst(tmp_path):
    parts = rooms(stay=2 * DAY, leaves=False)
    joins = parts["events"].to_pandas().drop_duplicates("candidate")
    twice = pd.concat([joins, joins.assign(id=joins["id"] + "again")])
    parts["events"] = pa.Table.from_pandas(twice, preserve_index=False)
    assert "since_join" not in suggested(tmp_path, parts)


def test_candidates_without_a_value_share_none(tmp_path):
    parts = rooms()
    host = [None if i % 3 == 0 else host for i, host in enumerate(parts["candidates"]["host"].to_pylist())]
    parts["candidates"] = parts["candidates"].set_column(1, "host", pa.array(host))
    # 400 rooms have one of 59 hosts.
    assert suggested(tmp_path, parts)["host_join_rate"].comment.startswith("6.8 candidates share a value")


@pytest.mark.parametrize(("num", "is_counted"), [(COUNTED_POSITIVES - 1, False), (COUNTED_POSITIVES, True)])
def test_an_outcome_with_too_few_events_is_measured_and_no_feature_counts_it(num, is_counted, tmp_path):
    parts = rooms()
    events = parts["events"].to_pandas()
    joins = events[events["kind"] == "join"].drop_duplicates(["viewer", "candidate"])[:num]
    buys = joins.assign(id=joins["id"] + "buy", kind="buy", ts_ms=joins["ts_ms"] + 1)
    parts["events"] = pa.Table.from_pandas(pd.concat([events, buys]), preserve_index=False)
    write_log(tmp_path / "log", parts)
    text = draft(tmp_path / "log").text
    surface = tomllib.loads(text)
    counting = {name for name, spec in surface["features"].items() if spec.get("event") == "buy"}
    assert "buy" in surface["outcomes"]
    assert bool(counting) == is_counted, counting
    assert ("too few for a feature" not in text) == is_counted
