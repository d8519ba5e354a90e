"""The live loop over HTTP: events and rankings change features and the log."""

from __future__ import annotations

import asyncio
import time

import pyarrow.parquet as pq
import pytest

from tests.support.live_service import Live, event, features


@pytest.fixture
def service(tmp_path, log_folder):
    return Live(tmp_path, log_folder)


def explained(service, **more):
    return service.rank(explain=True, **more)


def test_an_event_is_in_the_features_of_the_next_ranking(service):
    async def scenario(service):
        before = await explained(service)
        answer = await service.events(event("e9", viewer="cyd"))
        return before, answer, await explained(service, now_ms=52_000)

    before, answer, after = service.run(scenario)
    assert answer == {"accepted": 1, "duplicates": 0, "rejected": []}
    assert features(after, "a")["audience"] == features(before, "a")["audience"] + 1


def test_an_audience_is_those_who_are_there_however_often_they_say_so(service):
    async def scenario(service):
        room = {"type": "candidate", "id": "new", "ts_ms": 50_000, "fields": {"topic": "jazz"}}
        await service.events(room)
        answers = [await service.events(*(event(f"l{i}", "leave", "new") for i in range(2_000)))]
        answers.append(await service.events(*(event(f"j{i}", "join", "new", f"v{i}") for i in range(500))))
        many = (event(f"m{i}", "join", "new", "eve", 52_000 + i) for i in range(2_000))
        answers.append(await service.events(*many))
        now = await explained(service, candidates=["new"], now_ms=60_000)
        gone = await explained(service, candidates=["new"], now_ms=60_000 + 4 * 3_600_000, request_id="r2")
        return answers, features(now, "new")["audience"], features(gone, "new")["audience"]

    answers, now, gone = service.run(scenario)
    assert [answer["accepted"] for answer in answers] == [2_000, 500, 2_000]
    assert (now, gone) == (501, 0)


def test_a_ranking_counts_as_an_impression_of_what_it_showed(service):
    async def scenario(service):
        before = await explained(service, now_ms=50_000, limit=2)
        same_time = await explained(service, now_ms=50_000, request_id="other")
        return before, same_time, await explained(service, now_ms=50_001)

    before, same_time, after = service.run(scenario)
    shown = before["ranking"][0]["candidate"]
    seen = [features(answer, shown)["seen"] for answer in (before, same_time, after)]
    # A ranking does not see records of its own time.
    assert seen == [seen[0], seen[0], seen[0] + 2 + 3]


def test_an_event_is_counted_once_however_often_it_is_sent(service):
    async def scenario(service):
        return [await service.events(event("e9"), event("e9")), await service.events(event("e9"))]

    answers = service.run(scenario)
    assert [(a["accepted"], a["duplicates"]) for a in answers] == [(1, 1), (0, 1)]
    restarted = Live(service.folder)
    again = restarted.run(lambda service: service.events(event("e9")))
    assert (again["accepted"], again["duplicates"]) == (0, 1)


def test_good_records_are_kept_and_the_others_named(service):
    num_rejected = []

    async def scenario(service):
        service.fetcher.metrics.rejected = num_rejected.append
        return await service.events(
            event("e9"),
            event("e10", kind="jion"),
            {"type": "event", "id": "e11", "viewer": "ann", "candidate": "a"},
            {"type": "candidate", "id": "n", "ts_ms": 51_000, "fields": {"topik": "x"}},
            {"type": "viewer", "id": "v", "ts_ms": 51_000, "fields": {"language": 3}},
            {"type": "what"},
            7,
            event("e12", vewer="x"),
            event("e13", ts_ms=None),
        )

    answer = service.run(scenario)
    assert answer["accepted"] == 1
    assert num_rejected == [len(answer["rejected"])]
    told = {rejected["pointer"]: rejected["detail"] for rejected in answer["rejected"]}
    fields = ["kind", "", "fields/topik", "fields/language", "type", "", "vewer", "ts_ms"]
    assert list(told) == [f"/records/{i}/{field}".rstrip("/") for i, field in enumerate(fields, 1)]
    assert "did you mean 'join'" in told["/records/1/kind"]
    assert "did you mean 'topic'" in told["/records/3/fields/topik"]
    assert "did you mean 'viewer'" in told["/records/7/vewer"]


def test_a_new_candidate_is_known_at_once_and_one_that_ended_goes_last(service):
    async def scenario(service):
        new = {"type": "candidate", "id": "new", "ts_ms": 51_000, "fields": {"price": 9.0, "topic": "jazz"}}
        await service.events(new)
        first = await service.rank(candidates=["a", "new"], now_ms=52_000)
        await service.events({"type": "candidate", "id": "new", "ts_ms": 53_000, "ends_ms": 53_000})
        return first, await explained(service, candidates=["a", "new"], now_ms=54_000)

    first, ended = service.run(scenario)
    assert first["unknown_candidates"] == []
    assert [r["candidate"] for r in first["ranking"]] == ["new", "a"]
    assert [r["candidate"] for r in ended["ranking"]] == ["a", "new"]
    # A field that is not named keeps its value.
    assert features(ended, "new")["price"] == 9.0


def test_attributes_with_the_time_of_a_ranking_are_not_seen_by_it(service):
    async def scenario(service):
        ranked = await service.rank(candidates=["a", "new"], now_ms=50_000)
        await service.events({"type": "candidate", "id": "new", "ts_ms": 50_000, "fields": {"price": 9.0}})
        await service.events(event("e9", "click", "a", ts_ms=50_000))
        return ranked, await explained(service, candidates=["new"], now_ms=50_001)

    ranked, later = service.run(scenario)
    assert ranked["unknown_candidates"] == ["new"]
    # The ranking counts as an impression.
    assert features(later, "new")["join_rate"] == pytest.approx(0.1 * 10 / 11)


def test_a_forgotten_viewer_is_unknown(service):
    async def scenario(service):
        known = await service.rank()
        await service.events({"type": "forget", "viewer": "ann", "ts_ms": 51_000})
        return known, await service.rank(now_ms=52_000)

    known, forgotten = service.run(scenario)
    assert (known["unknown_viewer"], forgotten["unknown_viewer"]) == (False, True)


def test_a_candidate_leaves_the_table_an_hour_after_its_end(service):
    async def scenario(service):
        await service.events(event("e9", ts_ms=30_000 + 3_600_000))
        still = await service.rank(candidates=["c"], now_ms=3_700_000)
        await service.events(event("e10", ts_ms=30_001 + 3_600_000))
        return still, await service.rank(candidates=["c"], now_ms=3_700_000)

    still, gone = service.run(scenario)
    assert (still["unknown_candidates"], gone["unknown_candidates"]) == ([], ["c"])


def test_a_time_ahead_is_taken_as_now(tmp_path, log_folder):
    service = Live(tmp_path, log_folder, clock="wall")
    service.run(lambda service: service.events(event("e9", ts_ms=int(time.time() * 1e3) + 3_600_000)))
    served = pq.read_table(tmp_path / "served" / "events")
    assert served["ts_ms"][0].as_py() <= time.time() * 1e3


def test_test_traffic_is_logged_and_changes_no_state(service):
    async def scenario(service):
        before = await explained(service, now_ms=50_000, traffic="test")
        return before, await explained(service, now_ms=50_001, traffic="test")

    before, after = service.run(scenario)
    assert features(before, "a")["seen"] == features(after, "a")["seen"]


def test_a_retried_request_is_one_exposure(service):
    async def scenario(service):
        for _ in range(2):
            await service.rank(request_id="once")

    service.run(scenario)
    served = pq.read_table(service.folder / "served" / "exposures")
    assert served["request_id"].to_pylist() == ["once"]


def test_events_that_cannot_be_taken_are_answered_503_with_retry_after(service):
    async def scenario(service):
        async def broken(payload):
            raise OSError("gone")

        service.fetcher.ingest = broken
        return await service.post("/v1/events", {"records": [event("e9")]})

    response = service.run(scenario)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_events_that_ingest_is_slow_to_take_are_answered_503(service, monkeypatch):
    monkeypatch.setattr("serve.ranking.record_intake.TAKE_S", 0.05)

    async def scenario(service):
        async def hung(payload):
            await asyncio.Event().wait()

        service.fetcher.ingest = hung
        return await service.post("/v1/events", {"records": [event("e9")]})

    response = service.run(scenario)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_a_commit_removes_a_bounded_number_of_ended_candidates(service, monkeypatch):
    monkeypatch.setattr("serve.ingest.intake.MAX_ENDED", 2)
    ids = [f"n{i}" for i in range(5)]

    async def scenario(service):
        new = [{"type": "candidate", "id": id_, "ts_ms": 51_000, "ends_ms": 52_000} for id_ in ids]
        await service.events(*new)
        left = []
        for i in range(3):
            await service.events(event(f"e{i}", candidate="b", ts_ms=4_000_000 + i))
            left.append(len(service.ingester._intake.candidates))
        return left

    assert service.run(scenario) == [7, 5, 3], "of nine, six end: one is of the log"


def test_a_batch_beyond_a_mebibyte_is_refused_whole(service):
    body = b'{"records": [' + b" " * 10_000_000 + b"]}"
    response = service.run(lambda service: service.post("/v1/events", body))
    assert response.status_code == 413


def test_a_batch_of_too_many_records_is_refused_whole(service):
    response = service.run(lambda service: service.post("/v1/events", {"records": [7] * 2_001}))
    assert (response.status_code, response.json()["pointer"]) == (422, "/records")


def test_rankings_continue_with_stale_features_without_ingest(tmp_path, log_folder):
    service = Live(tmp_path, log_folder, clock="wall", stale_after_ms=1_500)

    async def scenario(service):
        service.is_ingest_away = True
        fresh = await service.rank()
        await asyncio.sleep(1.7)
        return fresh, await service.rank()

    fresh, stale = service.run(scenario)
    assert (fresh["rung"], fresh["degraded"]) == ("full", [])
    assert (stale["rung"], stale["degraded"]) == ("partial", ["stale_features"])
    assert stale["freshness_ms"] > 1_500
