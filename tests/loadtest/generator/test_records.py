"""Tests of the posted records."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest

from loadtest.generator.bodies import pack, viewer_events
from loadtest.generator.ids import Ids
from serve.contract.records import Candidate, Forget

IDS = Ids([f"v{i}" for i in range(50)], [f"c{i}" for i in range(9)])


def drawn(run="r", num=300, **changes):
    options = {"kinds": {"click": 3, "join": 1}, "batch": 10, **changes}
    bodies = list(islice(viewer_events(IDS, run=run, **options), num))
    return [json.loads(body)["records"] for body in bodies]


def test_events_come_in_batches_of_documented_records():
    batches = drawn()
    assert {len(batch) for batch in batches} == {10}
    for record in (record for batch in batches for record in batch):
        assert set(record) == {"type", "id", "viewer", "candidate", "kind"}
        assert record["type"] == "event"
        assert record["viewer"] in IDS.viewers
        assert record["candidate"] in IDS.candidates


def test_no_two_events_have_the_same_id_within_a_run_or_between_runs():
    names = [record["id"] for run in ("r", "s") for batch in drawn(run) for record in batch]
    assert len(set(names)) == len(names) == 6000


def test_kinds_viewers_and_candidates_are_drawn_as_they_are_in_a_log():
    records = [record for batch in drawn() for record in batch]
    kinds = Counter(record["kind"] for record in records)
    assert kinds["click"] / kinds["join"] == pytest.approx(3, rel=0.15)
    for field, known in (("viewer", IDS.viewers), ("candidate", IDS.candidates)):
        num = Counter(record[field] for record in records)
        assert set(num) == set(known)
        assert max(num.values()) < 3 * min(num.values())


def test_the_other_records_say_what_the_api_takes():
    sent = [Candidate("c"), Candidate("c", ends_ms=7), Forget("v")]
    assert json.loads(pack(sent)) == {
        "records": [
            {"type": "candidate", "id": "c"},
            {"type": "candidate", "id": "c", "ends_ms": 7},
            {"type": "forget", "viewer": "v"},
        ]
    }
