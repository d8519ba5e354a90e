"""Tests of the request bodies."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from loadtest.errors import LoadtestError
from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import Ids
from loadtest.workload.profiles import load_profile

PROFILE = replace(load_profile("headline"), candidates=5)
IDS = Ids([f"v{i}" for i in range(100)], [f"c{i}" for i in range(9)], {"v0": {"hour": 3.0}})


def decoded(**changes):
    return [json.loads(body) for body in make_bodies(IDS, replace(PROFILE, **changes), num=2000)]


def test_a_body_asks_for_exactly_the_distinct_candidates_of_the_profile():
    for body in decoded():
        assert len(set(body["candidates"])) == len(body["candidates"]) == 5
        assert set(body["candidates"]) <= set(IDS.candidates)


def test_a_body_is_test_traffic_and_leaves_the_request_id_to_the_service():
    assert {frozenset(body) - {"context"} for body in decoded()} == {
        frozenset({"viewer", "candidates", "traffic"})
    }
    assert {body["traffic"] for body in decoded()} == {"test"}


def test_the_context_is_the_viewers_own():
    assert all(body.get("context") == IDS.contexts.get(body["viewer"]) for body in decoded())
    assert any("context" in body for body in decoded())


def test_the_first_viewers_ask_most_and_by_the_zipf_law():
    counts = Counter(body["viewer"] for body in decoded(viewer_skew=1.0))
    assert counts["v0"] == pytest.approx(2000 / 5.187, rel=0.15)
    assert counts["v0"] > 1.5 * counts["v1"] > counts["v9"]


def test_without_skew_viewers_ask_evenly():
    counts = Counter(body["viewer"] for body in decoded(viewer_skew=0.0))
    assert max(counts.values()) < 45


def test_the_same_seed_gives_the_same_bodies():
    assert make_bodies(IDS, PROFILE, 50) == make_bodies(IDS, PROFILE, 50)
    assert make_bodies(IDS, PROFILE, 50) != make_bodies(IDS, PROFILE, 50, seed=1)


def test_too_few_candidates_are_refused():
    with pytest.raises(
        LoadtestError, match="9 distinct candidates, but a request of the profile headline needs 10"
    ):
        make_bodies(IDS, replace(PROFILE, candidates=10))
