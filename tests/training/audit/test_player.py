"""Test the order and the bodies of the requests that replay a log."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from serve.contract.rankings import RankRequest, StatedCandidate
from serve.features.slots import value_key
from serve.log.reader import read_log
from serve.log.writer import write_log
from tests.support.small_surface import tables
from training.audit.player import posts, replay_requests


def played(folder, surface, **changed):
    """Return the requests for the small log with some tables changed.

    Rankings are by id, records in their posts.
    """
    write_log(folder / "played", tables() | changed)
    sent = []
    for step in replay_requests(read_log(folder / "played", surface), surface):
        sent += [json.loads(body)["records"] for body in posts(step)] if isinstance(step, list) else step[1:]
    return sent


def names(sent):
    """Return rankings by their id, and posts by the ids of their records."""
    return [
        step.request_id if isinstance(step, RankRequest) else [record.get("id") for record in step]
        for step in sent
    ]


def test_what_came_before_a_ranking_is_sent_before_it(tmp_path, surface):
    order = [["ann", "bob", "a", "b", "c"], "r1", ["e1", "e2", "d"], "r2", ["e3"], "r3", ["e4", "e5"]]
    assert names(played(tmp_path, surface)) == order


def test_an_exposure_is_ranked_as_often_as_it_stands_for_one(tmp_path, surface):
    one_in = pa.array([3, 1, None], pa.int64())
    sent = played(tmp_path, surface, exposures=tables()["exposures"].append_column("one_in", one_in))
    rankings = [step for step in sent if isinstance(step, RankRequest)]
    # A repeated id would be dropped.
    assert [ranking.request_id for ranking in rankings] == ["r1", None, None, "r2", "r3"]
    assert [ranking.now_ms for ranking in rankings] == [10_000, 10_000, 10_000, 20_000, 40_000]
    assert rankings[1].candidates == rankings[0].candidates


def test_at_one_time_rankings_come_first_then_attributes_alone_then_events(tmp_path, surface):
    given = tables()
    candidates = given["candidates"].set_column(
        1, "ts_ms", pa.array([None, None, 20_000, 20_000], pa.int64())
    )
    times = pa.array([10_000, 20_000, 20_000], pa.int64())
    exposures = given["exposures"].set_column(1, "ts_ms", times)
    events = given["events"].set_column(
        1, "ts_ms", pa.array([11_000, 12_000, 20_000, 45_000, 60_000], pa.int64())
    )
    order = [["ann", "bob", "a", "b"], "r1", ["e1", "e2"], "r2", "r3", ["c", "d"], ["e3", "e4", "e5"]]
    assert (
        names(played(tmp_path, surface, candidates=candidates, exposures=exposures, events=events)) == order
    )


def test_a_ranking_request_equals_its_exposure(tmp_path, surface):
    stated = pa.array([json.dumps({"b": {"price": 2.0}}), None, None], pa.string())
    sent = played(tmp_path, surface, exposures=tables()["exposures"].append_column("stated", stated))
    rankings = [step for step in sent if isinstance(step, RankRequest)]
    assert rankings[0] == RankRequest(
        request_id="r1",
        now_ms=10_000,
        viewer="ann",
        candidates=["a", StatedCandidate("b", {"price": 2.0}), "c"],
        context={"hour": 3.0},
    )
    assert [ranking.context for ranking in rankings[1:]] == [{}, {}]


def test_records_carry_all_their_fields(tmp_path, surface):
    first, *_, last = played(tmp_path, surface)
    fields = {"language": "en", "follows": ["hal"]}
    assert first[0] == {"type": "viewer", "id": "ann", "fields": fields, "ts_ms": 0}
    assert first[4]["ends_ms"] == 30_000
    stated = {"host": "jon", "topic": "jazz", "price": 3.0}
    assert first[4]["fields"] == {**stated, "language": None, "tags": None, "started_ms": None}
    ids = {"id": "e5", "viewer": "ann", "candidate": "a"}
    assert last[-1] == {"type": "event", **ids, "kind": "leave", "ts_ms": 60_000}


def test_an_event_is_sent_as_of_its_ranking_where_a_clock_ran_behind(tmp_path, surface):
    late = pa.array([9_000, 12_000, 21_000, 45_000, 60_000], pa.int64())
    sent = played(tmp_path, surface, events=tables()["events"].set_column(1, "ts_ms", late))
    (e1,) = (r for step in sent if isinstance(step, list) for r in step if r.get("id") == "e1")
    assert (e1["ts_ms"], e1["request_id"]) == (10_000, "r1")
    assert names(sent)[1:3] == ["r1", ["e1", "e2", "d"]]


def test_a_served_log_is_sent_with_stated_fields_and_forgets(tmp_path, surface):
    viewers = pa.table(
        {
            "id": ["ann", "bob", "cyd", "cyd", value_key("host", 1)],
            "ts_ms": pa.array([None, 15_000, 5_000, 15_000, 15_000], pa.int64()),
            "language": ["en", "fr", None, None, None],
            "follows": pa.array([["hal"], None, None, None, None], pa.list_(pa.string())),
            "stated": pa.array([None, ["language"], None, None, None], pa.list_(pa.string())),
            "removed": [False, False, True, True, True],
        }
    )
    sent = played(tmp_path, surface, viewers=viewers)
    records = [record for step in sent if isinstance(step, list) for record in step]
    (bob,) = (record for record in records if record.get("id") == "bob")
    assert bob["fields"] == {"language": "fr"}
    # The earlier forget is in the store, and clients cannot forget values of fields.
    assert [(r["viewer"], r["ts_ms"]) for r in records if r["type"] == "forget"] == [("cyd", 15_000)]


@pytest.mark.parametrize(("limit", "most"), [("MAX_RECORDS", 2), ("MAX_POST_BYTES", 300)])
def test_records_go_in_posts_that_a_service_takes(tmp_path, surface, monkeypatch, limit, most):
    whole = [
        record for step in played(tmp_path / "whole", surface) if isinstance(step, list) for record in step
    ]
    monkeypatch.setattr(f"training.audit.player.{limit}", most)
    posts = [step for step in played(tmp_path / "parts", surface) if isinstance(step, list)]
    assert [record for post in posts for record in post] == whole
    assert 1 < max(map(len, posts)) < 5


def test_events_keep_their_values(tmp_path, surface):
    """Outcomes such as what was spent are sums of values."""
    events = tables()["events"]
    values = pa.array([3.5, *[None] * (len(events) - 1)], pa.float64())
    sent = played(tmp_path, surface, events=events.append_column("value", values))
    found = {record["id"]: record for step in sent if isinstance(step, list) for record in step}
    assert found["e1"]["value"] == 3.5
    assert "value" not in found["e2"]
