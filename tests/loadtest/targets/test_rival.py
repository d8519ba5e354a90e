"""Tests that plain FastAPI ranks as tabrank: the same scores for the same requests."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import numpy as np
import pytest

from loadtest.generator.bodies import make_bodies
from loadtest.generator.ids import read_log_ids
from loadtest.measure.service import read_answer
from loadtest.targets import rival
from loadtest.targets.rival import WORK, RankRequest, Reader
from loadtest.workload.profiles import load_profile
from serve.config.settings import AppArgs
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.http.decoding import decode_request
from serve.model.scorer_cache import ModelHolder
from serve.ranking.service import RankingService
from serve.ranking.upkeep import refresh
from serve.stores.factory import open_store
from tests.support.store_access import read_changes

NOW_S = 1_767_571_200.0 + 5_000
NUM_REQUESTS = 20
JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def _same_moment(bench_work, monkeypatch):
    """Fix the clock, which features depend on, and set the environment of the rival."""
    monkeypatch.setattr(time, "time", lambda: NOW_S)
    monkeypatch.setenv(WORK, str(bench_work.data))


@pytest.fixture(scope="module")
def bodies(bench_work):
    made = make_bodies(read_log_ids(bench_work.log, 55), load_profile("headline"), num=NUM_REQUESTS)
    stranger = json.loads(made[0]) | {"viewer": "nobody"}
    stranger["candidates"][7] = "unheard of"
    return [*made, json.dumps(stranger).encode(), json.dumps(stranger | {"viewer": None}).encode()]


class Scorers:
    """Scorers that hold the models of a folder; nothing else is called here."""

    def __init__(self, folder):
        self._models = ModelHolder(folder, "onnx")

    async def score(self, version, payload):
        return self._models.score_packed(version, payload)

    async def load(self, version):
        self._models.load(version)

    async def ingest(self, payload):
        raise AssertionError("nothing is sent on here")

    async def roll_back(self, version, verdict):
        raise AssertionError("nothing is rolled back here")


@pytest.fixture(scope="module")
def ours(bench_work, bodies):
    """Return tabrank's answers, from the same store and models."""

    async def answers():
        args = AppArgs("spaces", "lmdb:store", "models")
        fetcher = RankingService(args, bench_work.data, Scorers(bench_work.data / "models"))
        await refresh(fetcher)
        requests = [decode_request(body, fetcher.surface, event_clock=False) for body in bodies]
        return [await fetcher.rank(request, 60_000) for request in requests]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: NOW_S)
        return asyncio.run(answers())


def in_rival(scenario):
    async def run():
        async with rival.lifespan(rival.app):
            transport = httpx.ASGITransport(rival.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await scenario(client)

    return asyncio.run(run())


def same(ours, theirs):
    """Assert that both rank the same candidates with the same scores; ended ones have none."""
    assert ours.rung == theirs["rung"] == "full"
    assert ours.model == theirs["model"]
    scores = {ranked["candidate"]: ranked["score"] for ranked in theirs["ranking"]}
    assert len(scores) == len(ours.ranking)
    for ranked in ours.ranking:
        assert (scores[ranked.candidate] is None) == (ranked.score is None)
        assert ranked.score is None or abs(scores[ranked.candidate] - ranked.score) <= 1e-5
    in_order = [ranked["score"] for ranked in theirs["ranking"] if ranked["score"] is not None]
    assert in_order == sorted(in_order, reverse=True)
    assert [ranked["position"] for ranked in theirs["ranking"]] == list(range(1, len(scores) + 1))


def test_plain_fastapi_scores_as_tabrank(bodies, ours):
    async def scenario(client):
        return [await client.post("/v1/rank", content=body, headers=JSON) for body in bodies]

    spread = set()
    for mine, theirs in zip(ours, in_rival(scenario), strict=True):
        same(mine, theirs.json())
        assert read_answer(theirs.status_code, theirs.content, 55)[0].full
        spread |= {ranked.score for ranked in mine.ranking}
    # Otherwise equal scores would not prove anything.
    assert len(spread) > NUM_REQUESTS


@pytest.mark.parametrize(
    "change",
    [
        {"candidates": ["a", "a"]},
        {"candidates": [""]},
        {"candidates": ["x" * 257]},
        {"candidates": [str(i) for i in range(1_001)]},
        {"viewer": 7},
        {"limit": 0},
        {"traffic": "other"},
        {"surprise": 1},
    ],
)
def test_a_rival_refuses_what_tabrank_refuses(bodies, change):
    async def scenario(client):
        return await client.post("/v1/rank", json=json.loads(bodies[0]) | change)

    assert in_rival(scenario).status_code == 422


def test_the_limit_cuts_the_ranking(bodies):
    async def scenario(client):
        return await client.post("/v1/rank", json=json.loads(bodies[0]) | {"limit": 3})

    assert [ranked["position"] for ranked in in_rival(scenario).json()["ranking"]] == [1, 2, 3]


def test_what_changes_in_the_store_is_seen_at_the_next_read(bench_work):
    reader, schema = Reader(bench_work.data), Schema(load_surface("spaces"))
    [name, *_] = read_log_ids(bench_work.log, 55).candidates

    def has_ended():
        return reader.read(RankRequest(viewer=None, candidates=[name]))[1].tolist()

    store = open_store("lmdb:store", "spaces", schema.fingerprint, base=bench_work.data, writable=True)
    store.take_epoch()
    try:
        live = read_changes(store, 0).rows[name]
        ended = np.frombuffer(live, schema.candidate).copy()
        ended["ends_ms"] = 1
        assert has_ended() == [False]
        store.commit(store.seq() + 1, {}, {name: ended.tobytes()})
        assert has_ended() == [True]
        store.commit(store.seq() + 1, {}, {name: live})
    finally:
        store.close()
