"""Tests of the demo's topic story against a stub that accepts events, and of its report row."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loadtest.errors import LoadtestError
from loadtest.report.demo import GAIN, PLACE, demo_findings, demo_verdict, write_demo
from loadtest.scenarios import demo, topic_story
from loadtest.scenarios.topic_story import NEW_SPACE, TopicStory
from tests.support.demo_report import demo_report, load_report

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
    joined = [event.candidate for event in story.engagements() if event.kind == "join"]
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
    with pytest.raises(LoadtestError, match="rankings did not know the new Space"):
        ranks("a")


def test_events_that_are_not_taken_end_the_demo(live_stub, ranks):
    live_stub.events_status = 503
    with pytest.raises(LoadtestError, match=r"does not accept events: 503 .*the log is full"):
        ranks("a")
    live_stub.events_status, live_stub.refuses = 200, "join"
    with pytest.raises(LoadtestError, match=r"rejects the demo's events: .*no such kind"):
        ranks("a")


def test_the_viewers_first_places_are_recorded_before_and_after(live_stub, ranks):
    rankings = ranks("a")["rankings"]
    before, after = rankings["before"], rankings["after"]
    assert [room["position"] for room in before[:8]] == [*range(1, 9)]
    assert before[-1]["candidate"] == NEW_SPACE
    assert (after[0]["candidate"], after[0]["was"]) == (NEW_SPACE, before[-1]["position"])
    assert after[0]["topic"] == "chess"
    # This service gives no reasons.
    assert {room["reasons"] for room in after} == {None}
    explained = [request["explain"] for request in live_stub.requests]
    assert explained.count(True) == 2


def row(name, **changes):
    """Return the value and the note of a number."""
    return next(rest for found, *rest in demo_findings(demo_report(**changes)).rows if found == name)


def test_the_report_says_how_soon_the_room_rose():
    topic = demo_report()["topic"]
    assert row(PLACE) == ["20 → 3", "after 0.31 s, at most 1 s"]
    assert row("the same for a control viewer") == ["9 → 9", "rises less"]
    late = topic | {"seconds": None, "rose": False}
    assert row(PLACE, topic=late) == ["20 → 3", "not in time"]


def test_the_model_is_compared_by_expected_joins_or_else_by_ndcg():
    def against(**paired):
        return row(GAIN, train={"paired": demo_report()["train"]["paired"] | paired})

    assert against() == ["+0.031", "± 0.008 joins per ranking (2 standard errors)"]
    assert against(expected_labels=None) == ["+0.150", "± 0.020 NDCG@10 (2 standard errors)"]
    assert against(expected_labels=None, **{"ndcg@10": None, "se": None})[0] == "–"


def page_of(folder, **changes):
    write_demo(demo_report(**changes), folder)
    return (folder / "report.html").read_text().partition("<script>")[0].replace("\xa0", " ")


MODEST = load_report(profile="modest", offered_rps=300.0, rps=300.0, candidates_per_s=16_500.0)


@pytest.mark.parametrize(
    ("word", "told"), [("not held", "did not hold on this machine"), ("void", "gave no verdict")]
)
def test_a_lower_rate_decides_and_the_first_one_is_told(tmp_path, word, told):
    first = load_report(word, reasons=["p99 is 200.0 ms, above 100 ms"])
    page = page_of(tmp_path, load=MODEST, headline=first)
    assert "Held: 300 rankings/s in time" in page
    assert f"<p>900 rankings/s {told}: p99 is 200.0 ms" in page
    assert "not valid" not in page


def test_figures_without_a_verdict_are_marked(tmp_path):
    late = {**MODEST, "verdict": "void", "reasons": ["the load generator itself was late"]}
    page = page_of(tmp_path, load=late, headline=load_report("void", reasons=["late"]))
    assert "No verdict on 300 rankings/s in time" in page
    assert page.count("not valid") == 6
    assert "the machine was too busy to measure the load; the other results stand" in page


def test_a_demo_holds_only_if_the_room_rose_and_the_load_held():
    assert demo_verdict(demo_report()) == "held"
    assert demo_verdict(demo_report(load=load_report("void"))) == "void"
    sank = demo_report()["topic"] | {"rose": False}
    assert demo_verdict(demo_report(topic=sank, load=load_report("void"))) == "not held"


def test_the_report_tells_the_story_with_short_numbers(tmp_path):
    lines = write_demo(demo_report(), tmp_path)
    assert lines.startswith(
        "tabrank: the demo: held, 3 min 20 s\n  requests a second: 900.2, 900.0 offered\n"
    )
    assert f"  {PLACE}: 20 → 3, after 0.31 s, at most 1 s" in lines
    page = (tmp_path / "report.html").read_text().partition("<script>")[0]
    for told in (
        "Held: 900 rankings/s in time",
        "one machine with",
        "joined rooms on this topic (0.31, typical 0.05) +0.83",
        "↑ 17, from 20",
        "P(join | looked at)",
        "± 0.008",
        "README.md",
    ):
        assert told in page, told
    assert "0.0500000" not in page


def test_a_load_without_numbers_and_rankings_without_reasons_are_told(tmp_path):
    gone = {"profile": "headline", "url": "x", "verdict": "void", "reasons": ["no service answers"]}
    topic = demo_report()["topic"]
    plain = [room | {"reasons": None} for room in topic["rankings"]["after"]]
    topic = topic | {"rankings": {"before": plain, "after": plain}}
    page = page_of(tmp_path, load=gone, headline=gone, topic=topic)
    assert "No verdict on 900 rankings/s" in page
    assert "requests a second" not in page
    assert "no service answers." in page
    assert "too busy" not in page


def test_the_step_of_the_load_shows_its_figures(monkeypatch, capsys):
    gone = {"verdict": "void", "reasons": ["no service answers"]}
    loads = iter([gone, load_report("not held", reasons=["p99 is 200.0 ms, above 100 ms"])])
    monkeypatch.setattr(demo, "_run_json", lambda *command, accept: next(loads))
    demo._load_service("http://127.0.0.1:1")
    _, first, reason, _, second, *_ = capsys.readouterr().out.splitlines()
    assert (first, reason) == ("     void", "     no service answers")
    assert second.startswith("     not held; requests a second: 900.2; candidates a second, ")
    assert "; p99: " in second


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
