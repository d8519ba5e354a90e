"""The client against the service's HTTP application."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from serve.client import Client, Refused, TimedOut
from serve.contract.records import Candidate, Event, Forget, Viewer
from tests.support.live_service import Live

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]


@pytest.fixture
def live(tmp_path, log_folder):
    return Live(tmp_path, log_folder, clock="wall")


def test_every_kind_of_record_is_taken_and_what_is_not_says_why(live):
    records = [
        Event("e1", "ann", "a", "join"),
        Viewer("ann", {"language": "fr"}),
        Candidate("new", {"topic": "jazz", "tags": ["x"]}, ends_ms=2**53),
        Forget("bob"),
        Event("e2", "ann", "a", "jump"),
        Event("e3", "ann", "a", "join", ts_ms=1_764_000_000),
    ]
    with live.listening() as url, Client(url) as client:
        taken = client.send(records)
        again = client.send(records[:1])
        ranked = client.rank("ann", ["new", "never"], request_id="r1", timeout_s=2.0)
    pointers = [rejected.pointer for rejected in taken.rejected]
    assert (taken.accepted, pointers) == (4, ["/records/4/kind", "/records/5/ts_ms"])
    assert "looks like seconds; multiply by 1000" in taken.rejected[1].detail
    assert (again.accepted, again.duplicates) == (0, 1)
    assert (ranked.request_id, ranked.unknown_candidates) == ("r1", ["never"])


def test_a_mistake_comes_back_with_its_place(live):
    with live.listening() as url, Client(url) as client, pytest.raises(Refused) as caught:
        client.rank("ann", ["a", "b", "a"], request_id="r2")
    assert (caught.value.status, caught.value.pointer, caught.value.request_id) == (
        422,
        "/candidates/2",
        "r2",
    )


def test_a_hanging_scorer_leads_to_an_answer_within_the_timeout(live):
    async def never(version, payload):
        await asyncio.sleep(60)

    live.score = never
    answers = []
    with live.listening() as url, Client(url, timeout_s=0.2) as client:
        # Repeat, because a busy test machine may delay an answer.
        for _ in range(5):
            with suppress(TimedOut):
                answers.append(client.rank("ann", ["a", "b"]))
    assert answers
    assert {answer.rung for answer in answers} == {"fallback"}
    # After three failures the circuit breaker is open.
    assert {*answers[0].degraded} <= {"deadline", "scorer_unavailable"}
