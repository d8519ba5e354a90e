"""Tests of the demo's topic story against a stub that accepts events, and of its report row."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from demo_report import demo_report, load_report

from loadtest.errors import LoadtestError
from loadtest.measure.verdict import WORDS
from loadtest.report.demo import claims, demo_verdict, write_demo
from loadtest.scenarios import demo, topic_story
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
    with pytest.raises(LoadtestError, match="rankings did not know the new Space"):
        ranks("a")


def test_events_that_are_not_taken_end_the_demo(live_stub, ranks):
    live_stub.events_status = 503
    with pytest.raises(LoadtestError, match=r"failed on events: 503 .*the log is full"):
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


def claim(name, **changes):
    """Return what was found, and whether the claim holds."""
    return next((row[3], row[1]) for row in claims(demo_report(**changes)) if row[0] == name)


def test_the_report_says_how_soon_it_rose():
    topic = demo_report()["topic"]
    told = "place 20 → 3{}; for a control viewer 9 → 9"
    assert claim("adapts to the viewer") == (told.format(" within 0.31 s"), "✓ yes")
    late = topic | {"seconds": None, "rose": False}
    assert claim("adapts to the viewer", topic=late) == (told.format(""), "✗ no")


def test_only_the_direction_of_the_difference_from_popular_is_compared(tmp_path):
    def against(**paired):
        train = demo_report()["train"]
        return claim("against most popular", train=train | {"paired": train["paired"] | paired})

    found = "+0.031 ± {} joins per ranking, logged rankings"
    assert against() == (found.format("0.008"), "– same direction")
    assert against(expected_labels_se=0.02) == (found.format("0.040"), "– no clear difference")
    assert against(expected_labels=-0.031)[1] == "✗ opposite direction"
    assert against(expected_labels=None, **{"ndcg@10": None}) == ("–", "– not compared")
    train = demo_report()["train"]
    worse = train | {"paired": train["paired"] | {"expected_labels": -0.02}}
    assert "; the model loses against popular" in page_of(tmp_path, train=worse)


def page_of(folder, **changes):
    write_demo(demo_report(**changes), folder)
    return (folder / "report.html").read_text().partition("<script>")[0].replace("\xa0", " ")


def test_a_row_is_judged_by_its_own_number():
    slow = load_report("not held", p90_ms=31.0, p99_ms=130.0, candidates_per_s=40_000.0)
    held = {
        name: claim(name, load=slow, headline=slow)[1] for name in ("rankings", "candidates", "p90", "p99")
    }
    assert held == {"rankings": "✗ no", "candidates": "✗ no", "p90": "✓ yes", "p99": "✗ no"}
    never = load_report("not held", p90_ms=None, p99_ms=None)
    assert claim("p90", load=never, headline=never) == ("not reached", "✗ no")


MODEST = load_report(profile="modest", target_rps=300.0, rps=300.0, candidates_per_s=16_500.0)


@pytest.mark.parametrize(
    ("word", "holds", "told"),
    [("not held", "✗ no", "did not hold on this machine"), ("void", "– no verdict", "gave no verdict")],
)
def test_a_lower_rate_does_not_hold_the_claimed_one(tmp_path, word, holds, told):
    first = load_report(word, reasons=["p99 is 200.0 ms, above 100 ms"])
    loads = {"load": MODEST, "headline": first}
    assert claim("rankings", **loads) == (f"300 /s of 300 offered, held; {WORDS[word]} at 900 /s", holds)
    assert claim("p90", **loads) == ("8.4 ms", "– at 300 /s only")
    page = page_of(tmp_path, **loads)
    assert "Held: 300 rankings/s in time" in page
    assert f"<p>900 rankings/s {told}: p99 is 200.0 ms" in page
    assert "not valid" not in page


def test_figures_without_a_verdict_are_marked(tmp_path):
    late = {**MODEST, "verdict": "void", "reasons": ["the load generator itself was late"]}
    page = page_of(tmp_path, load=late, headline=load_report("void", reasons=["late"]))
    assert "No verdict on 300 rankings/s in time" in page
    assert page.count("not valid") == 4
    assert claim("p99", load=late)[1] == "– no verdict"


def test_a_demo_holds_only_if_the_room_rose_and_the_load_held():
    assert demo_verdict(demo_report()) == "held"
    assert demo_verdict(demo_report(load=load_report("void"))) == "void"
    sank = demo_report()["topic"] | {"rose": False}
    assert demo_verdict(demo_report(topic=sank, load=load_report("void"))) == "not held"


def test_the_report_tells_the_story_with_short_numbers(tmp_path):
    table = write_demo(demo_report(), tmp_path)
    assert "joins per ranking" in table
    page = (tmp_path / "report.html").read_text().partition("<script>")[0]
    for told in (
        "Held: 900 rankings/s in time",
        "one machine with",
        "joined rooms on this topic (0.31, typical 0.05) +0.83",
        "↑ 17, from 20",
        "P(join | looked at)",
        "± 0.008",
        "make experiment",
    ):
        assert told in page, told
    assert "0.0500000" not in page
    assert page.index("Claimed and found") < page.index("Latency under load") < page.index("against popular")


def test_a_load_without_numbers_and_rankings_without_reasons_are_told(tmp_path):
    gone = {"profile": "headline", "url": "x", "verdict": "void", "reasons": ["no service answers"]}
    topic = demo_report()["topic"]
    plain = [room | {"reasons": None} for room in topic["rankings"]["after"]]
    topic = topic | {"rankings": {"before": plain, "after": plain}}
    write_demo(demo_report(load=gone, headline=gone, topic=topic), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "No verdict on 900 rankings/s" in page
    assert claim("p99", load=gone) == ("–", "– no verdict")
    assert claim("rankings", load=gone, headline=gone) == ("– of 900 offered, no verdict", "– no verdict")
    assert "load took" not in page
    assert "no service answers." in page
    assert "what moves it most" not in page


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
