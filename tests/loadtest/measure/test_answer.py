"""Tests of the classification of answers."""

from __future__ import annotations

import json

import pytest

from loadtest.measure.service import Outcome, read_acknowledgement, read_answer


def body(rung="full", model="m1", scores=(0.5, 0.25), **more):
    ranking = [{"candidate": f"c{i}", "score": s, "position": i + 1} for i, s in enumerate(scores)]
    return json.dumps({"request_id": "r", "rung": rung, "model": model, "ranking": ranking, **more}).encode()


def test_a_full_answer_of_a_model_counts_its_scored_candidates():
    assert read_answer(200, body(scores=(0.5, 0.1, None)), 3) == (Outcome("full", True, True), 2)


def test_a_full_answer_of_a_heuristic_counts_none():
    assert read_answer(200, body(model=None), 2) == (Outcome("full", True, False), 0)


@pytest.mark.parametrize("rung", ["partial", "fallback"])
def test_a_lower_rung_counts_none_even_with_scores(rung):
    assert read_answer(200, body(rung=rung), 2) == (Outcome(rung, True, False), 0)


def test_another_status_is_an_error_of_that_name():
    assert read_answer(503, b"", 2) == (Outcome("HTTP 503", False), 0)


@pytest.mark.parametrize("garbled", [b"", b"{}", b"[]", b'{"rung": 1}', body()[:-1], body(rung=None)])
def test_an_answer_that_is_not_as_documented_is_an_error(garbled):
    assert read_answer(200, garbled, 2) == (Outcome("unreadable answer", False), 0)


def test_an_answer_that_lacks_a_candidate_is_an_error():
    assert read_answer(200, body(), 3) == (Outcome("wrong number of candidates", False), 0)


def acknowledged(accepted, **more):
    return json.dumps({"accepted": accepted, "duplicates": 0, "rejected": [], **more}).encode()


def test_records_count_when_they_are_acknowledged():
    assert read_acknowledgement(200, acknowledged(3), 3) == (Outcome("accepted", True), 3)


def test_records_that_are_not_taken_are_an_error_and_the_others_count():
    rejected = [{"pointer": "/records/1", "detail": "no such kind"}]
    assert read_acknowledgement(207, acknowledged(2, rejected=rejected), 3) == (
        Outcome("records refused", False),
        2,
    )


@pytest.mark.parametrize(
    ("status", "answer", "name"), [(503, b"", "HTTP 503"), (200, b"{}", "unreadable answer")]
)
def test_posted_records_without_an_acknowledgement_are_an_error(status, answer, name):
    assert read_acknowledgement(status, answer, 1) == (Outcome(name, False), 0)
