"""Tests of the demo's topic story against a stub that accepts events, and of its report row."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loadtest.errors import LoadtestError
from loadtest.scenarios import demo, topic_story
from loadtest.scenarios.demo import claims
from loadtest.scenarios.topic_story import NEW_SPACE, TopicStory

TOPICS = ("music", "music", "music", "chess", "chess")


@pytest.fixture
def story(tmp_path):
    """Story of viewer `a`, who is most active and joined only music; `b` has the same language."""
    return story_at(tmp_path, 0)


def story_at(tmp_path, hour):
    """Return the story of a log that ends at that hour; its first rooms ended at its beginning."""
    rooms = [
        {
            "id": f"c{i}",
            "ts_ms": 1,
            "host": None if i else "h",
            "topic": TOPICS[i % 5],
            "language": "en",
            "speakers": 2.0,
            "started_ms": 5,
            "ends_ms": 9 if i >= 50 or (hour and i < 8) else None,
        }
        for i in range(60)
    ]
    shown = [
        {"request_id": f"r{i}", "ts_ms": hour * 3_600_000 + i, "viewer": v, "candidates": ["c0"]}
        for i, v in enumerate("aaabbc")
    ]
    joins = [{"id": "e", "ts_ms": 1, "viewer": "a", "candidate": "c0", "kind": "join"}]
    viewers = [{"id": v, "language": "fr" if v == "c" else "en"} for v in "abc"]
    for name, rows in (("viewers", viewers), ("candidates", rooms), ("exposures", shown), ("events", joins)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    return TopicStory(tmp_path, tmp_path / "run")


@pytest.fixture
def ranks(live_stub, story):
    """Rank the new Space in the middle, and first for viewers in `rises_for` once events show."""

    def rank(*rises_for):
        def score(viewer, candidate):
            if candidate != NEW_SPACE:
                return -float(candidate[1:])
            return 1.0 if viewer in rises_for and live_stub.shows(story.viewer) else -24.5

        live_stub.score = score
        story.open(live_stub.url)
        return story.play(live_stub.url)

    return rank


def test_the_new_space_rises_for_who_joined_its_topic(live_stub, story, ranks):
    result = ranks("a")
    assert (story.viewer, story.control, result["topic"]) == ("a", "b", "chess")
    assert result["viewer"]["after"] == 1 < result["viewer"]["before"]
    assert result["control"]["before"] == result["control"]["after"]
    assert result["rose"] is True
    assert 0.05 <= result["seconds"] <= 1.0


def test_the_posted_records_are_a_space_and_five_joins_with_clicks(live_stub, story, ranks):
    begun_ms = time.time() * 1000
    ranks("a")
    opened, *events = live_stub.records
    started_ms = opened["fields"].pop("started_ms")
    assert begun_ms - 120_000 < started_ms < time.time() * 1000
    assert opened == {
        "type": "candidate",
        "id": NEW_SPACE,
        "fields": {"host": "a-new-host", "topic": "chess", "language": "en", "speakers": 2.0},
    }
    assert [event["kind"] for event in events] == ["click", "join"] * 5
    assert {event["viewer"] for event in events} == {"a"}
    assert len({event["id"] for event in events}) == 10
    joined = [event["candidate"] for event in events if event["kind"] == "join"]
    assert joined == ["c3", "c4", "c8", "c9", "c13"]


def test_rooms_that_ended_long_ago_are_not_joined(tmp_path):
    story = story_at(tmp_path, 2)
    joined = [event["candidate"] for event in story.engagements() if event["kind"] == "join"]
    assert joined == ["c8", "c9", "c13", "c14", "c18"]


def test_a_space_that_rises_for_everybody_does_not_rise_for_the_viewer(ranks):
    result = ranks("a", "b")
    assert result["control"]["after"] == 1
    assert result["rose"] is False


def test_a_space_that_rises_late_does_not_rise(live_stub, ranks, monkeypatch):
    assert topic_story.RISES_S == 1.0
    monkeypatch.setattr(topic_story, "RISES_S", 0.3)
    live_stub.shows_after_s = 0.5
    result = ranks("a")
    assert 0.4 < result["seconds"] < 1.5
    assert result["viewer"]["after"] == 1
    assert result["rose"] is False


def test_a_space_that_never_rises_is_waited_for_a_while(ranks, monkeypatch):
    monkeypatch.setattr(topic_story, "WAIT_S", 0.3)
    result = ranks()
    assert (result["seconds"], result["rose"]) == (None, False)


def test_a_space_that_no_ranking_knows_ends_the_demo(live_stub, ranks, monkeypatch):
    monkeypatch.setattr(topic_story, "WAIT_S", 0.3)
    live_stub.shows_after_s = None
    with pytest.raises(LoadtestError, match="the new Space was unknown to rankings"):
        ranks("a")


def test_events_that_are_not_taken_end_the_demo(live_stub, ranks):
    live_stub.events_status = 503
    with pytest.raises(LoadtestError, match=r"failed on events: 503 .*the log is full"):
        ranks("a")
    live_stub.events_status, live_stub.refuses = 200, "join"
    with pytest.raises(LoadtestError, match="no such kind"):
        ranks("a")


def reported(seconds):
    topic = {"viewer": {"before": 20, "after": 3}, "control": {"before": 9, "after": 9}, "seconds": seconds}
    load = {"verdict": "held", "target_rps": 900}
    train = {"paired": {"ndcg@10": None}}
    rows = claims({"load": load, "train": train, "topic": topic, "machine": {"cores": 2}})
    return next(here for what, _, here in rows if what == "adapts to the viewer")


def test_the_report_says_how_soon_it_rose():
    assert reported(0.312) == "place 20 → 3 within 0.31 s; for a control viewer 9 → 9"
    assert reported(None) == "place 20 → 3; for a control viewer 9 → 9"


def test_an_interrupted_demo_stops_its_service_and_says_so(monkeypatch, tmp_path, capsys):
    def cut():
        raise KeyboardInterrupt

    commands = []
    monkeypatch.setattr(demo, "DEMO", tmp_path)
    monkeypatch.setattr(demo, "die_with_parent", lambda: None)
    monkeypatch.setattr(demo, "_run", lambda *command: commands.append(command[:2]))
    monkeypatch.setattr(demo, "_demo", cut)
    assert demo.main() == 2
    assert commands == [("serve", "down")]
    assert capsys.readouterr().err == "\ninterrupted: no verdict, and no report is written\n"
