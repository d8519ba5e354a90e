"""The request path over ASGI: real stores, table, features and batcher; the scorer is a fake."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import numpy as np
import pytest
from openapi_spec_validator import validate

from serve.config.settings import POPULAR, ApiKey, AppArgs, Arm, Experiment, UserConfig
from serve.contract.errors import TabrankError
from serve.contract.rankings import RankRequest
from serve.features.matrix import Matrix
from serve.features.surface import load_surface
from serve.http.app import Edge
from serve.http.tracing import trace_id_of
from serve.ingest.backfill import load
from serve.log.events import IngestResult, unpack
from serve.log.writer import write_log
from serve.model.artifact import CURRENT, point
from serve.model.scorer_cache import timed
from serve.ranking.admission import HERE
from serve.ranking.assignment import assign
from serve.ranking.load_shedding import TICK_S, TICKS
from serve.ranking.service import RankingService
from serve.ranking.upkeep import keep_up, refresh
from serve.rollout.history import History
from tests.support.filled_store import fill_store
from tests.support.small_surface import TOML, tables
from tests.support.stub_artifact import MODEL, publish_stub

NOW_MS = 50_000


class FakeScorer:
    """Scores a candidate by its price, 0.5 without a price."""

    def __init__(self):
        self.calls = 0
        self.delay_s = 0.0
        self.error = None
        self.answer = lambda price: np.where(np.isnan(price), 0.5, price / 10)

    async def score(self, version, payload):
        self.calls += 1
        await asyncio.sleep(self.delay_s)
        if self.error:
            raise self.error
        matrix = Matrix.from_bytes(payload)
        price = np.expm1(np.log1p(matrix.numeric[:, 0]))
        return timed(self.answer(price).astype(np.float32).tobytes(), 1.0)

    async def load(self, version):
        pass


class Service:
    """A service of the small surface, after `refresh`."""

    root_path = ""

    def __init__(self, tmp_path, log_folder, arm="current", clock="event", toml=TOML, **arm_options):
        (tmp_path / "tiny.toml").write_text(toml)
        publish_stub(tmp_path / "models", TOML)
        if log_folder:
            fill_store(tmp_path / "tiny.toml", log_folder)
        self.scorer = FakeScorer()
        args = AppArgs("tiny.toml", "lmdb:store", "models", clock=clock)
        self.taken = []
        self.fetcher = RankingService(args, tmp_path, self)
        self.fetcher.settings.start(
            UserConfig(Experiment("launch", "s", (Arm("model", arm, 1.0, **arm_options),)), deadline_ms=1_000)
        )

    async def score(self, version, payload):
        return await self.scorer.score(version, payload)

    async def load(self, version):
        await self.scorer.load(version)

    async def ingest(self, payload):
        self.taken += unpack(payload)
        return IngestResult()

    async def roll_back(self, version, verdict):
        pass

    def ask(self, body=None, *, path="/v1/rank", headers=None, method="POST", raw=None):
        async def scenario():
            await refresh(self.fetcher)
            async with self.client() as client:
                content = raw if raw is not None else json.dumps(body)
                headers_ = {"content-type": "application/json"} | (headers or {})
                return await client.request(method, path, content=content, headers=headers_)

        return asyncio.run(scenario())

    @asynccontextmanager
    async def client(self):
        transport = httpx.ASGITransport(Edge(self.fetcher), root_path=self.root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


@pytest.fixture
def service(tmp_path, log_folder):
    return Service(tmp_path, log_folder, arm=MODEL)


def body(**changes):
    return {"viewer": "ann", "candidates": ["a", "b", "d"], "now_ms": NOW_MS} | changes


def order(answer):
    return [ranked["candidate"] for ranked in answer["ranking"]]


def two_with_room_for_one(service):
    """Return the answers to two requests at one time, in a queue with room for one of them."""
    shedder = service.fetcher.admission.load_shedder
    shedder.enabled, shedder.most = True, 4
    for _ in range(TICKS):
        shedder.answered(0.0406, is_scored=True)
        shedder.tick(TICK_S, 0.1)
    assert 3 < shedder.limit < 4

    async def scenario():
        await refresh(service.fetcher)
        async with service.client() as client:
            asked = [client.post("/v1/rank", json=body()) for _ in range(2)]
            return [response.json() for response in await asyncio.gather(*asked)]

    return asyncio.run(scenario())


def test_a_ranking_is_in_the_order_of_its_scores(service):
    answer = service.ask(body()).json()
    assert order(answer) == ["b", "d", "a"]
    assert [r["position"] for r in answer["ranking"]] == [1, 2, 3]
    assert [r["score"] for r in answer["ranking"]] == pytest.approx([0.5, 0.4, 0.1])
    assert (answer["rung"], answer["degraded"], answer["arm"]) == ("full", [], "model")
    assert answer["model"] == MODEL
    assert answer["unknown_viewer"] is False
    assert answer["freshness_ms"] < 5_000
    assert set(answer["timing_ms"]) == {"queue", "features", "score", "total"}


def test_it_answers_below_the_route_prefix_of_its_application(service):
    service.root_path = "/spaces"
    assert service.ask(body(), path="/spaces/v1/rank").status_code == 200
    assert service.ask(path="/spaces/livez", method="GET").status_code == 200
    assert service.ask(body(), path="/spaces").status_code == 404


def test_the_limit_cuts_the_ranking(service):
    assert order(service.ask(body(limit=2)).json()) == ["b", "d"]


def test_no_candidates_give_an_empty_ranking(service):
    response = service.ask(body(candidates=[]))
    assert (response.status_code, response.json()["ranking"]) == (200, [])


def test_a_ranking_reads_no_file_of_its_model(service, tmp_path):
    asyncio.run(refresh(service.fetcher))
    for file in (tmp_path / "models" / MODEL).iterdir():
        file.unlink()
    assert service.ask(body()).json()["model"] == MODEL


def test_an_ended_candidate_goes_last_without_a_score(service):
    answer = service.ask(body(candidates=["c", "a"])).json()
    assert order(answer) == ["a", "c"]
    assert answer["ranking"][1]["score"] is None
    assert answer["rung"] == "full"
    assert order(service.ask(body(candidates=["c", "a"], now_ms=29_000)).json()) == ["c", "a"]


def test_unknown_ids_are_named_and_last(service):
    answer = service.ask(body(viewer="nobody", candidates=["a", "what"])).json()
    assert answer["unknown_viewer"] is True
    assert answer["unknown_candidates"] == ["what"]
    assert order(answer) == ["a", "what"]
    assert answer["rung"] == "full"


def test_an_anonymous_viewer_is_not_unknown(service):
    answer = service.ask(body(viewer=None)).json()
    assert (answer["unknown_viewer"], answer["rung"]) == (False, "full")


def test_a_request_may_state_the_fields_that_the_surface_allows(service):
    stated = [{"candidate": "a", "fields": {"price": 9.0}}, "b"]
    assert service.ask(body(candidates=stated)).json()["ranking"][0]["score"] == pytest.approx(0.9)


def test_explain_answers_the_feature_values(service):
    features = service.ask(body(explain=True)).json()["ranking"][2]["features"]
    assert features["price"] == 1.0
    assert features["same_language"] == 1.0
    assert features["audience"] == 0.0
    assert len(features["tags"]) == 2
    assert "features" not in service.ask(body()).json()["ranking"][0]


def test_the_popular_arm_never_calls_the_scorer(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm="popular")
    answer = service.ask(body()).json()
    assert order(answer) == ["b", "d", "a"]  # audiences 1, 1, 0: ties as given
    assert (answer["rung"], answer["model"], answer["degraded"]) == ("full", None, [])
    assert {r["score"] for r in answer["ranking"]} == {None}
    assert service.scorer.calls == 0


RULE = '\n[baseline]\nsort = ["follows_host", "same_language", "audience"]\n'


@pytest.fixture
def ruled(tmp_path, log_folder):
    return Service(tmp_path, log_folder, arm="baseline", toml=TOML + RULE)


def test_the_arm_of_the_baseline_ranks_by_the_rule_without_the_scorer(ruled):
    answer = ruled.ask(body(explain=True)).json()
    # Ann follows the host of a and d, and d has the larger audience; popular ranks b first.
    assert order(answer) == ["d", "a", "b"]
    assert [r["features"]["follows_host"] for r in answer["ranking"]] == [1.0, 1.0, 0.0]
    assert (answer["rung"], answer["model"], answer["degraded"]) == ("full", None, [])
    assert {r["score"] for r in answer["ranking"]} == {None}
    assert order(ruled.ask(body(candidates=["c", "zz", "b", "a"])).json()) == ["a", "b", "c", "zz"]
    assert ruled.scorer.calls == 0


def test_the_baseline_ranks_by_weights_too(tmp_path, log_folder):
    rule = "[baseline]\nweights = { audience = 1.0, price = -1.0 }\n"
    service = Service(tmp_path, log_folder, arm="baseline", toml=f"{TOML}\n{rule}")
    # Audiences 0, 1 and 1, prices 1, none and 4.
    assert order(service.ask(body()).json()) == ["b", "a", "d"]
    stated = [{"candidate": "a", "fields": {"price": 5.0}}, "d"]
    assert order(service.ask(body(viewer=None, candidates=stated)).json()) == ["d", "a"]


def test_the_baseline_falls_back_to_the_popular_order_as_a_model_does(ruled):
    first, second = two_with_room_for_one(ruled)
    assert (order(first), first["rung"]) == (["d", "a", "b"], "full")
    assert (order(second), second["degraded"]) == (["b", "d", "a"], ["overload"])
    ruled.fetcher.settings.start(replace(ruled.fetcher.settings.config, kill_switch=True))
    answer = ruled.ask(body()).json()
    assert (order(answer), answer["degraded"]) == (["b", "d", "a"], ["kill_switch"])


def test_fast_answers_of_the_baseline_hide_no_slow_scorer(ruled):
    shedder = ruled.fetcher.admission.load_shedder
    shedder.enabled = True
    for _ in range(TICKS):
        for _ in range(20):
            assert ruled.ask(body()).json()["rung"] == "full"
        shedder.answered(0.08, is_scored=True)
        shedder.tick(TICK_S, 0.1)
    assert shedder.level > 0


def test_without_a_store_the_baseline_does_not_claim_to_be_full(tmp_path):
    answer = Service(tmp_path, None, arm="baseline", toml=TOML + RULE).ask(body()).json()
    assert (answer["rung"], answer["degraded"]) == ("fallback", ["store_unavailable"])


def test_an_arm_of_a_baseline_that_the_surface_lacks_is_refused(tmp_path, log_folder):
    with pytest.raises(TabrankError, match=r"arms\.model\.scorer: the surface has no \[baseline\]; add one"):
        Service(tmp_path, log_folder, arm="baseline")


def test_an_explored_order_is_drawn_and_its_propensity_logged(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm=MODEL, explore=1.0)
    # Equal scores make every order equally probable.
    service.scorer.answer = lambda price: np.full(len(price), 0.5)
    answers = [service.ask(body(candidates=["a", "b", "c", "d"])).json() for _ in range(20)]
    assert len({tuple(order(answer)[:3]) for answer in answers}) > 1
    assert {order(answer)[3] for answer in answers} == {"c"}  # it has ended, and stays last
    asyncio.run(service.fetcher.exposure_buffer.flush())
    for exposure, answer in zip(service.taken, answers, strict=True):
        assert exposure.candidates == order(answer)
        assert exposure.propensity == pytest.approx([1 / 3, 1 / 2, 1, 1])


def test_what_is_not_explored_has_no_propensity(service):
    service.ask(body())
    asyncio.run(service.fetcher.exposure_buffer.flush())
    (exposure,) = service.taken
    assert (exposure.propensity, exposure.experiment, exposure.share) == (None, "launch", 1.0)
    assert 0 < exposure.latency_ms < 1_000
    assert exposure.degraded == []


def test_an_anonymous_ranking_counts_for_no_experiment(service):
    answer = service.ask(body(viewer=None)).json()
    assert (answer["experiment"], answer["arm"], answer["rung"]) == (None, "model", "full")
    asyncio.run(service.fetcher.exposure_buffer.flush())
    assert (service.taken[0].experiment, service.taken[0].share) == (None, None)


def test_a_tester_with_the_key_gets_the_arm_that_is_asked_for(tmp_path, log_folder):
    service = Service(tmp_path, log_folder)
    arms = (Arm("model", MODEL, 1.0), Arm("popular", "popular", 0.0))
    keys = (api_key("tester", may_choose_arm=True), api_key("app"))
    service.fetcher.settings.start(UserConfig(Experiment("launch", "s", arms), api_keys=keys))
    headers = {"x-arm": "popular", "x-api-key": "of tester"}
    answer = service.ask(body(), headers=headers).json()
    assert (answer["arm"], answer["experiment"], answer["model"]) == ("popular", None, None)
    assert service.ask(body(), headers=headers | {"x-api-key": "of app"}).status_code == 403
    assert service.ask(body(), headers=headers | {"x-api-key": "guess"}).status_code == 401
    assert service.ask(body(), headers={"x-api-key": "of app"}).json()["arm"] == "model"


def api_key(name, requests_per_s=1_000.0, **may):
    return ApiKey(name, hashlib.sha256(f"of {name}".encode()).hexdigest(), requests_per_s, **may)


def test_all_but_probes_and_documents_need_a_key_and_keys_change_live(service):
    got = ["/v1/model", "/v1/nothing", "/livez", "/readyz", "/openapi.json", "/docs/docs.js"]

    async def scenario(key):
        headers = {"x-api-key": key} if key else {}
        async with service.client() as client:
            asked = [(await client.get(path, headers=headers)).status_code for path in got]
            posted = [client.post(path, json=body(), headers=headers) for path in ("/v1/rank", "/v1/events")]
            return asked, [answer.status_code for answer in await asyncio.gather(*posted)]

    def statuses(key):
        return asyncio.run(scenario(key))

    with_keys = replace(service.fetcher.settings.config, api_keys=(api_key("old"),))
    service.fetcher.settings.start(with_keys)
    assert statuses("of old") == ([200, 404, 200, 200, 200, 200], [200, 422])
    for key in (None, "of new"):
        assert statuses(key) == ([401, 401, 200, 200, 200, 200], [401, 401])
    response = service.ask(body())
    assert response.headers["content-type"] == "application/problem+json"
    assert "www-authenticate" in response.headers
    assert "X-Api-Key" in response.json()["detail"]

    service.fetcher.settings.start(replace(with_keys, api_keys=(api_key("old"), api_key("new"))))
    assert (statuses("of old")[1], statuses("of new")[1]) == ([200, 422], [200, 422])
    service.fetcher.settings.start(replace(with_keys, api_keys=(api_key("new"),)))
    assert (statuses("of old")[1], statuses("of new")[1]) == ([401, 401], [200, 422])


def test_who_asks_too_often_is_told_when_to_come_again(service):
    service.fetcher.settings.start(
        replace(service.fetcher.settings.config, api_keys=(api_key("app", 0.5), api_key("b")))
    )

    async def scenario():
        await refresh(service.fetcher)
        async with service.client() as client:
            return [
                await client.post(
                    "/v1/rank", json=body(), headers={"x-api-key": f"of {name}", "x-request-id": "r"}
                )
                for name in ("app", "app", "b")
            ]

    first, second, other = asyncio.run(scenario())
    assert (first.status_code, second.status_code, other.status_code) == (200, 429, 200)
    assert 1 <= int(second.headers["retry-after"]) <= 2
    assert (second.json()["request_id"], second.json()["title"]) == ("r", "too many requests")


def test_an_arm_of_an_artifact_that_is_not_published_is_refused(tmp_path, log_folder):
    with pytest.raises(TabrankError, match=r"arms\.model\.scorer: version .* is not published"):
        Service(tmp_path, log_folder, arm="20260101T000000Z-ffff")


def test_an_arm_whose_artifact_is_damaged_gets_the_popular_order(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm=MODEL)
    (tmp_path / "models" / MODEL / "report.html").write_text("altered")
    answer = service.ask(body()).json()
    assert (answer["rung"], answer["degraded"], answer["model"]) == ("fallback", ["no_model"], None)


OTHER = "20260202T000000Z-abcd"


def both(model, popular=POPULAR, **more):
    arms = (Arm("model", model, 0.5), Arm("popular", popular, 0.5))
    return UserConfig(Experiment("launch", "s", arms), deadline_ms=300, **more)


def viewer_of(fetcher, arm):
    return next(
        f"v{i}" for i in range(99) if assign(fetcher.settings.config.experiment, f"v{i}", 0).arm.name == arm
    )


def test_an_arm_that_changes_its_artifact_never_falls_back(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm=MODEL)
    publish_stub(tmp_path / "models", TOML, OTHER)

    async def scenario():
        await refresh(service.fetcher)
        await service.fetcher.settings.change(both(OTHER))
        return await service.fetcher.rank(
            RankRequest(viewer_of(service.fetcher, "model"), ["a"], now_ms=NOW_MS)
        )

    answer = asyncio.run(scenario())
    assert (answer.rung, answer.model) == ("full", OTHER)


def test_a_change_to_a_damaged_artifact_leaves_the_settings_as_they_were(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm=MODEL)
    publish_stub(tmp_path / "models", TOML, OTHER)
    (tmp_path / "models" / OTHER / "report.html").write_text("altered")

    async def scenario():
        await refresh(service.fetcher)
        await service.fetcher.settings.change(both(OTHER))
        assert "report.html is not the file that was written" in str(service.fetcher.settings.error)

    asyncio.run(scenario())
    assert service.ask(body()).json()["model"] == MODEL


def test_the_popular_arm_does_not_wait_for_a_scorer_that_hangs(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm=MODEL)
    service.fetcher.settings.start(both(MODEL))
    service.scorer.delay_s = 5.0

    async def scenario():
        await refresh(service.fetcher)
        asked = [
            RankRequest(viewer_of(service.fetcher, arm), ["a", "b"], now_ms=NOW_MS)
            for arm in ("model", "popular") * 5
        ]
        return await asyncio.gather(*(service.fetcher.rank(request) for request in asked))

    answers = asyncio.run(scenario())
    assert {(a.arm, a.rung) for a in answers} == {("model", "fallback"), ("popular", "full")}


def test_the_model_endpoint_returns_the_experiment_and_each_arms_artifact(service):
    service.fetcher.settings.start(both(MODEL))
    described = service.ask(path="/v1/model", method="GET").json()["experiment"]
    assert (described["name"], described["holdout"], described["end_ms"]) == ("launch", 0.0, None)
    assert [(arm["name"], arm["model"]) for arm in described["arms"]] == [("model", MODEL), ("popular", None)]


def test_the_popular_order_is_explained_in_words_too(service, tmp_path):
    point(tmp_path / "models", CURRENT, MODEL)
    service.fetcher.settings.start(both(MODEL))
    viewer = viewer_of(service.fetcher, "popular")
    assert service.ask(body(viewer=viewer, explain=True)).json()["ranking"][0]["features"]


def test_noop_keeps_the_order_given(tmp_path, log_folder):
    assert order(Service(tmp_path, log_folder, arm="noop").ask(body()).json()) == ["a", "b", "d"]


def test_without_a_model_the_order_is_the_popular_one(tmp_path, log_folder):
    answer = Service(tmp_path, log_folder).ask(body()).json()
    assert order(answer) == ["b", "d", "a"]
    assert (answer["rung"], answer["degraded"], answer["model"]) == ("fallback", ["no_model"], None)


def test_when_the_scorer_fails_the_order_is_the_popular_one(service):
    service.scorer.error = RuntimeError("gone")
    response = service.ask(body())
    assert response.status_code == 200
    assert order(response.json()) == ["b", "d", "a"]
    assert (response.json()["rung"], response.json()["degraded"]) == ("fallback", ["scorer_unavailable"])


def test_when_the_store_is_not_there_the_answer_says_so(tmp_path):
    answer = Service(tmp_path, None, arm=MODEL).ask(body()).json()
    assert order(answer) == ["a", "b", "d"]
    assert (answer["rung"], answer["degraded"]) == ("fallback", ["store_unavailable"])


def test_the_popular_arm_does_not_claim_to_be_full_without_a_store(tmp_path):
    answer = Service(tmp_path, None, arm="popular").ask(body()).json()
    assert (answer["rung"], answer["degraded"]) == ("fallback", ["store_unavailable"])
    assert answer["unknown_viewer"] is False


def test_a_scorer_that_answers_too_few_scores_is_not_believed(service):
    service.scorer.answer = lambda price: np.array([0.5])
    assert service.ask(body()).json()["degraded"] == ["scorer_unavailable"]


def test_past_its_deadline_a_request_gets_the_popular_order(service):
    service.scorer.delay_s = 0.5
    response = service.ask(body(), headers={"x-deadline-ms": "30"})
    assert order(response.json()) == ["b", "d", "a"]
    assert (response.json()["rung"], response.json()["degraded"]) == ("fallback", ["deadline"])


def test_of_two_requests_with_room_for_one_the_second_gets_the_popular_order(service):
    first, second = two_with_room_for_one(service)
    assert (first["rung"], first["model"]) == ("full", MODEL)
    assert (second["rung"], second["degraded"], second["model"]) == ("fallback", ["overload"], None)
    assert service.ask(body()).json()["rung"] == "full"


def test_a_ranking_counts_once_for_each_hundred_candidates_and_callers_share_the_replica(service):
    keys = tuple(ApiKey(name, hashlib.sha256(name.encode()).hexdigest(), 1.0) for name in ("a", "b"))
    service.fetcher.settings.config = replace(service.fetcher.settings.config, api_keys=keys)
    many = body(candidates=[f"c{i}" for i in range(300)])

    async def scenario():
        await refresh(service.fetcher)
        async with service.client() as client:

            async def ask(name):
                return (await client.post("/v1/rank", json=many, headers={"x-api-key": name})).status_code

            return [await ask("a"), await ask("a"), await ask("b")]

    assert asyncio.run(scenario()) == [200, 429, 200]
    assert set(service.fetcher.admission._seen_s) == {"a", "b"}


def joins(num, since=0):
    record = {"type": "event", "viewer": "ann", "candidate": "a", "kind": "join", "ts_ms": NOW_MS}
    return {"records": [record | {"id": f"e{i}"} for i in range(since, since + num)]}


def test_a_batch_of_events_counts_once_for_each_hundred_records(service):
    service.fetcher.settings.start(
        replace(service.fetcher.settings.config, api_keys=(api_key("a", 10), api_key("b", 10)))
    )

    async def scenario():
        await refresh(service.fetcher)
        async with service.client() as client:

            async def send(name, num):
                return await client.post("/v1/events", json=joins(num), headers={"x-api-key": f"of {name}"})

            few = [await send("a", 100) for _ in range(5)]
            return few, [await send("b", 2_000), await send("b", 1)]

    few, (many, after) = asyncio.run(scenario())
    assert [answer.status_code for answer in few] == [200] * 5
    assert (many.status_code, after.status_code) == (200, 429)
    assert after.json()["title"] == "too many requests"
    assert "a batch of events as one per 100 records" in after.json()["detail"]
    assert 1 <= int(after.headers["retry-after"]) <= 2


def test_a_key_that_floods_ingest_is_refused_and_the_others_go_on(service):
    keys = (api_key("flood", 1e6), api_key("other", 1e6))
    service.fetcher.settings.start(replace(service.fetcher.settings.config, api_keys=keys))

    async def scenario():
        await refresh(service.fetcher)
        durable = asyncio.Event()

        async def ingest(payload):
            await durable.wait()
            return IngestResult()

        service.fetcher.ingest = ingest
        async with service.client() as client:

            def send(name, content):
                headers = {"x-api-key": f"of {name}", "content-type": "application/json"}
                return client.post("/v1/events", content=content, headers=headers)

            many, one = (json.dumps(joins(num)) for num in (1_500, 1))
            flood = [asyncio.create_task(send("flood", many)) for _ in range(16)]
            refused, taken = await asyncio.wait(flood, timeout=0.5)
            unread = await send("flood", "no JSON")
            taken.add(asyncio.create_task(send("other", one)))
            await asyncio.sleep(0.1)
            durable.set()
            answers = await asyncio.gather(*taken)
            return [task.result() for task in refused], unread, answers, await send("flood", many)

    refused, unread, taken, again = asyncio.run(scenario())
    assert ([answer.status_code for answer in refused], len(taken)) == ([429] * 15, 2)
    assert (refused[0].json()["title"], refused[0].headers["retry-after"]) == ("busy", "1")
    assert "1500 records of the key 'flood' are not stored yet" in refused[0].json()["detail"]
    assert unread.status_code == 429
    assert {answer.status_code for answer in (*taken, again)} == {200}


def test_a_refusal_does_not_count_against_the_key(service):
    keys = (ApiKey("a", hashlib.sha256(b"a").hexdigest(), 1.0),)
    service.fetcher.settings.config = replace(service.fetcher.settings.config, api_keys=keys)
    edge = Edge(service.fetcher)
    asked = []

    async def scenario():
        await refresh(service.fetcher)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(edge), base_url="http://localhost"
        ) as client:
            for refuses in (True, True, False):
                service.fetcher.admission.refuses = lambda *request, refuses=refuses: refuses
                asked.append(await client.post("/v1/rank", json=body(), headers={"x-api-key": "a"}))

    asyncio.run(scenario())
    assert [response.status_code for response in asked] == [429, 429, 200]


class NearModels(FakeScorer):
    """Models of the FeatureFetch process itself."""

    def holds(self, version):
        return version == MODEL

    def score_packed(self, version, payload):
        self.calls += 1
        price = np.expm1(np.log1p(Matrix.from_bytes(payload).numeric[:, 0]))
        return timed(self.answer(price).astype(np.float32).tobytes(), 1.0)


def test_where_the_scorer_fails_the_process_scores_itself(tmp_path, service):
    near, scorer = NearModels(), service.scorer
    scorer.error = ConnectionError("gone")
    before = service.fetcher
    service.fetcher = RankingService(before.args, tmp_path, service, in_process=near)
    service.fetcher.settings.start(before.settings.config)
    answer = service.ask(body()).json()
    assert (answer["rung"], order(answer)) == ("full", ["b", "d", "a"])
    assert (scorer.calls, near.calls) == (1, 1)


def test_of_too_many_candidates_for_a_call_the_most_popular_are_scored(service, tmp_path, monkeypatch):
    row_bytes = service.fetcher.features.columns.row_bytes
    monkeypatch.setattr("serve.ranking.batches.MAX_CALL_BYTES", 2 * row_bytes)
    # The store is there already.
    service = Service(tmp_path, None, arm=MODEL)
    whole, sizes = service.scorer.answer, []
    service.scorer.answer = lambda price: sizes.append(len(price)) or whole(price)
    answer = service.ask(body()).json()
    assert (answer["rung"], answer["degraded"], answer["model"]) == ("partial", ["overload"], MODEL)
    assert sizes == [2]
    scores = [ranked["score"] for ranked in answer["ranking"]]
    assert scores[:2] == sorted(scores[:2], reverse=True)
    assert scores[2] is None
    service.scorer.answer = lambda price: np.array([np.nan, 0.5])
    assert service.ask(body()).json()["degraded"] == ["overload", "non_finite_score"]


def test_the_time_in_which_a_body_comes_is_no_queue(service):
    async def scenario():
        await refresh(service.fetcher)
        content = json.dumps(body()).encode()

        async def slowly():
            yield content[:10]
            # On a busy machine, the ranking alone may take a tenth of a second.
            await asyncio.sleep(1.2)
            yield content[10:]

        stamp = HERE + b"%d" % (time.time() * 1e6)
        async with service.client() as client:
            headers = {"content-type": "application/json", "x-arrived": stamp.decode()}
            headers |= {"x-deadline-ms": "1000"}
            return (await client.post("/v1/rank", content=slowly(), headers=headers)).json()

    assert asyncio.run(scenario())["rung"] == "full"


def test_what_waited_beyond_its_deadline_gets_the_popular_order(service, monkeypatch):
    # On a busy machine, this process may pause while it reads the body.
    monkeypatch.setattr("serve.http.app.WHOLE_S", math.inf)
    stamp = HERE + b"%d" % ((time.time() - 0.15) * 1e6)
    headers = {"x-arrived": stamp.decode(), "x-deadline-ms": "100"}
    answer = service.ask(body(), headers=headers).json()
    assert (answer["rung"], answer["degraded"]) == ("fallback", ["deadline"])


def test_a_client_may_send_a_hundred_headers_beside_those_of_the_proxies(service):
    def status(number):
        return service.ask(body(), headers={f"x-{i}": "1" for i in range(number)}).status_code

    # httpx adds some of its own.
    own = 6
    assert (status(100 - own), status(110)) == (200, 431)


def test_a_query_that_fails_takes_no_other_one_of_its_batch_along(service):
    async def scenario():
        await refresh(service.fetcher)
        popular = service.fetcher.batches._ranker.popular

        async def failing(queries):
            raise RuntimeError("a batch")

        def poisoned(queries, reasons):
            if any(query.viewer == "bo" for query in queries):
                raise RuntimeError("a query")
            return popular(queries, reasons)

        service.fetcher.batches._scored._work = failing
        service.fetcher.batches._ranker.popular = poisoned
        async with service.client() as client:
            asked = [client.post("/v1/rank", json=body(viewer=viewer)) for viewer in ("ann", "bo", "cy")]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(scenario()) == [200, 500, 200]


def test_what_comes_too_late_to_be_answered_is_refused_unread(service):
    service.fetcher.admission.refuses = lambda *request: True
    took_ms = []
    service.fetcher.metrics.refused = took_ms.append
    refused = service.ask(raw=b"not even JSON")
    assert len(took_ms) == 1
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["title"] == "busy"


def test_a_hanging_scorer_is_not_called_and_no_request_waits(service):
    service.scorer.delay_s = 5.0

    async def scenario():
        await refresh(service.fetcher)
        async with service.client() as client:
            hurried = [
                (await client.post("/v1/rank", json=body(), headers={"x-deadline-ms": "80"})).json()
                for _ in range(3)
            ]
            return hurried, (await client.post("/v1/rank", json=body())).json()

    hurried, patient = asyncio.run(scenario())
    assert [answer["degraded"] for answer in hurried] == [["deadline"]] * 3
    assert patient["degraded"] == ["scorer_unavailable"]
    assert patient["timing_ms"]["total"] < 500, "its deadline is a second"


def test_callers_with_hardly_any_time_cost_the_others_no_score(service):
    service.scorer.delay_s = 0.02

    async def scenario():
        await refresh(service.fetcher)
        async with service.client() as client:
            hurried = [
                (await client.post("/v1/rank", json=body(), headers={"x-deadline-ms": "10"})).json()
                for _ in range(6)
            ]
            return hurried, (await client.post("/v1/rank", json=body())).json()

    hurried, patient = asyncio.run(scenario())
    assert [answer["degraded"] for answer in hurried] == [["deadline"]] * 6
    assert (patient["rung"], patient["degraded"]) == ("full", [])


def test_a_score_that_is_no_number_sinks_and_is_told(service):
    service.scorer.answer = lambda price: np.where(np.isnan(price), np.nan, price / 10)
    answer = service.ask(body()).json()
    assert order(answer) == ["d", "a", "b"]
    assert (answer["rung"], answer["degraded"]) == ("partial", ["non_finite_score"])
    assert answer["ranking"][2]["score"] is None


def test_concurrent_requests_share_batches_and_keep_their_answers(service):
    async def scenario():
        await refresh(service.fetcher)
        async with service.client() as client:
            slates = [["a", "b"], ["d"], ["b", "a", "d"], []] * 10
            asked = [client.post("/v1/rank", json=body(candidates=slate)) for slate in slates]
            return slates, [r.json() for r in await asyncio.gather(*asked)]

    slates, answers = asyncio.run(scenario())
    for slate, answer in zip(slates, answers, strict=True):
        assert sorted(order(answer)) == sorted(slate)
        assert [r["score"] for r in answer["ranking"]] == sorted(
            (r["score"] for r in answer["ranking"]), reverse=True
        )
    assert service.scorer.calls < 20


def test_a_call_of_the_scorer_is_capped_in_bytes(service, monkeypatch, tmp_path):
    row_bytes = service.fetcher.features.columns.row_bytes
    monkeypatch.setattr("serve.ranking.batches.MAX_CALL_BYTES", 5 * row_bytes + 7)
    # The store is there already.
    service = Service(tmp_path, None, arm=MODEL)
    calls = []

    whole = service.scorer.score

    async def score(version, payload):
        calls.append(len(Matrix.from_bytes(payload).numeric))
        return await whole(version, payload)

    service.scorer.score = score

    async def scenario():
        await refresh(service.fetcher)
        async with service.client() as client:
            stated = [{"candidate": f"c{i}", "fields": {"price": 1.0}} for i in range(9)]
            asked = [["a", "b"]] * 10 + [stated]
            posted = [client.post("/v1/rank", json=body(candidates=ids)) for ids in asked]
            return [answer.json() for answer in await asyncio.gather(*posted)]

    answers = asyncio.run(scenario())
    assert max(calls) <= 5
    assert {answer["rung"] for answer in answers[:10]} == {"full"}
    scored = [ranked for ranked in answers[10]["ranking"] if ranked["score"] is not None]
    assert (len(scored), answers[10]["rung"]) == (5, "partial")


def test_request_ids_come_from_the_body_then_the_header_else_are_new(service):
    assert service.ask(body(request_id="mine"), headers={"x-request-id": "h"}).json()["request_id"] == "mine"
    assert service.ask(body(), headers={"x-request-id": "h"}).json()["request_id"] == "h"
    assert service.ask(body()).json()["request_id"] != service.ask(body()).json()["request_id"]


REFUSED = [
    (body(candidates=["a", "b", "a"]), 422, "/candidates/2", "duplicate"),
    (body(candidates=["a"] * 1_001), 422, "/candidates", "1000"),
    (body(candidates=["a", 3]), 422, "/candidates/1", "str"),
    (body(candidates=["a", ""]), 422, "/candidates/1", "a string with a length of at least 1"),
    (body(candidates=["x" * 257]), 422, "/candidates/0", "a length of at most 256"),
    (body(candidates=["a", "\0b"]), 422, "/candidates/1", "begins with NUL"),
    (body(candidates="a"), 422, "/candidates", "array"),
    (body(viewer=7), 422, "/viewer", "str"),
    (body(limit=0), 422, "/limit", "a whole number of at least 1"),
    (body(vewer="x"), 422, "/vewer", "did you mean 'viewer'?"),
    (body(traffic="real"), 422, "/traffic", "real"),
    (body(context={"hoor": 3}), 422, "/context/hoor", "did you mean 'hour'?"),
    (body(context={"hour": 10**400}), 422, "/context/hour", "must be a number"),
    (body(context={"hour": 1e308}), 422, "/context/hour", "must be a number"),
    (body(now_ms=2**63), 422, "/now_ms", "of at most 9007199254740992"),
    (body(context={"hour": "noon"}), 422, "/context/hour", "must be a number"),
    (
        body(candidates=[{"candidate": "a", "fields": {"topic": "x"}}]),
        422,
        "/candidates/0/fields/topic",
        "'topic' is stored; requests may state price. Send it to /v1/events, or declare it with request_time = true",
    ),
    (
        body(candidates=[{"candidate": "a", "filds": {}}]),
        422,
        "/candidates/0/filds",
        "did you mean 'fields'?",
    ),
    ({"viewer": "ann", "candidates": [], "now_ms": None}, 422, "/now_ms", "event clock"),
    ({"candidates": []}, 422, "", "viewer"),
    ([], 422, "", "object"),
]


def test_of_a_key_that_comes_twice_the_last_value_counts(service):
    twice = json.dumps(body(candidates=["a", "b"])).removesuffix("}") + ', "limit": 2, "limit": 1}'
    assert len(service.ask(raw=twice).json()["ranking"]) == 1


@pytest.mark.parametrize(("asked", "status", "pointer", "said"), REFUSED)
def test_what_means_nothing_is_refused_with_a_pointer(service, asked, status, pointer, said):
    response = service.ask(asked)
    problem = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem.get("pointer") == pointer
    assert said in problem["detail"]


DEEP = '{"viewer": "ann", "candidates": [], "now_ms": 1, "context": {"hour": %s}}'


@pytest.mark.parametrize(
    "raw",
    [
        DEEP % ("[" * 9_000 + "]" * 9_000),
        DEEP % ('{"a":' * 9_000 + "1" + "}" * 9_000),
        "{",
        "",
        '{"viewer": NaN, "candidates": []}',
        b"\xff",
        '{"viewer": 1e999}',
        "[" * 5_000,
    ],
)
def test_what_is_no_json_is_refused(service, raw):
    response = service.ask(raw=raw)
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"headers": {"content-type": "text/plain"}}, 415),
        ({"headers": {"content-type": ""}}, 415),
        ({"headers": {"origin": "http://evil.example"}}, 403),
        ({"headers": {"origin": "null"}}, 403),
        ({"headers": {"host": "evil.example:8000"}}, 403),
        ({"headers": {"host": "evil.example", "origin": "http://evil.example"}}, 403),
        ({"headers": {"host": "evil.example"}, "method": "GET", "path": "/v1/model"}, 403),
        ({"method": "OPTIONS", "headers": {"origin": "http://evil.example"}}, 405),
        ({"headers": {"x-deadline-ms": "soon"}}, 400),
        ({"headers": {"x-deadline-ms": "0"}}, 400),
        ({"headers": {"x-deadline-ms": "0000000019999999"}}, 400),
        ({"headers": {"x-request-id": "two words"}}, 400),
        ({"headers": {"x-arm": "popular"}}, 403),
        ({"headers": {f"x-{i}": "" for i in range(101)}}, 431),
        ({"headers": {"x-long": "x" * 16_384}}, 431),
        ({"raw": b" " * (2 * 1024 * 1024 + 1)}, 413),
        ({"method": "GET"}, 405),
        ({"path": "/v1/rnk"}, 404),
    ],
)
def test_what_cannot_be_taken_is_refused_as_a_problem(service, asked, status):
    response = service.ask(**({"body": body()} | asked))
    assert response.status_code == response.json()["status"] == status
    assert response.headers["content-type"] == "application/problem+json"


def test_a_websocket_handshake_is_refused_with_a_code_for_rays_proxy(service):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Edge(service.fetcher)({"type": "websocket", "path": "/v1/rank", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_body_without_a_type_is_refused_as_a_page_may_send_one(service):
    async def scenario():
        await refresh(service.fetcher)
        async with service.client() as client:
            return [await client.post(path, content=b"{}") for path in ("/v1/rank", "/v1/events")]

    for response in asyncio.run(scenario()):
        assert response.status_code == 415
        assert response.json()["detail"] == "send Content-Type: application/json"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"},
        {"host": "LocalHost:8000"},
        {"host": "[::1]:8000"},
        {"content-type": "application/json; charset=utf-8"},
    ],
)
def test_a_page_and_a_name_of_its_own_machine_are_let_in(service, headers):
    assert service.ask(body(), headers=headers).status_code == 200


def test_with_a_key_any_host_is_let_in_and_pages_of_others_are_not(service):
    service.fetcher.settings.start(replace(service.fetcher.settings.config, api_keys=(api_key("app"),)))
    headers = {"x-api-key": "of app", "host": "ranking.example"}
    assert service.ask(body(), headers=headers).status_code == 200
    assert service.ask(body(), headers=headers | {"origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "changes",
    [
        {"context": {"x\n" * 500_000: 1}},
        {"x\n" * 500_000: 1},
        {"traffic": "x" * 1_000_000},
        {"candidates": ["a", {"candidate": "b", "fields": {"y" * 1_000_000: 1}}]},
        {"candidates": ["x" * 200 + "\n", "x" * 200 + "\n"]},
    ],
)
def test_echoed_input_is_short_and_without_control_characters(service, changes):
    response = service.ask(body(**changes))
    assert response.status_code == 422
    assert len(response.content) < 1_000
    assert not any(ord(character) < 32 for character in response.json()["detail"])


def test_now_is_the_services_own_with_the_wall_clock(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm="popular", clock="wall")
    assert service.ask({"viewer": "ann", "candidates": ["a"]}).status_code == 200
    assert service.ask(body()).json()["pointer"] == "/now_ms"


def test_a_fault_in_the_batch_still_ends_in_the_popular_order(service):
    async def broken(queries):
        raise OverflowError("of a neighbour")

    service.fetcher.batches._scored._work = broken
    response = service.ask(body())
    assert (response.status_code, order(response.json())) == (200, ["b", "d", "a"])
    assert response.json()["rung"] == "fallback"


@pytest.mark.parametrize("arm", ["model", "popular"])
def test_with_the_kill_switch_every_arm_gets_the_popular_order(service, arm):
    service.fetcher.settings.start(replace(both(MODEL), kill_switch=True))
    viewer = viewer_of(service.fetcher, arm)
    answer = service.ask(body(viewer=viewer, candidates=["a", "b", "zz"])).json()
    assert order(answer) == ["b", "a", "zz"]
    assert [r["score"] for r in answer["ranking"]] == [None] * 3
    assert (answer["rung"], answer["degraded"], answer["model"]) == ("fallback", ["kill_switch"], None)
    assert (answer["experiment"], answer["arm"], answer["unknown_candidates"]) == ("launch", arm, ["zz"])
    assert service.scorer.calls == 0
    assert service.ask(path="/v1/model", method="GET").json()["kill_switch"] is True


def test_the_kill_switch_is_turned_back_in_place(service):
    service.fetcher.settings.start(replace(both(MODEL), kill_switch=True))
    service.fetcher.settings.start(both(MODEL))
    viewer = viewer_of(service.fetcher, "model")
    assert service.ask(body(viewer=viewer)).json()["rung"] == "full"
    assert service.ask(path="/v1/model", method="GET").json()["kill_switch"] is False


def test_a_trace_that_the_caller_samples_hears_of_its_ranking(service, monkeypatch):
    heard = []
    monkeypatch.setattr(
        "serve.http.app.record", lambda parent, scope, answer: heard.append((trace_id_of(parent), answer))
    )
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    for flags in ("01", "00"):
        header = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-{flags}"}
        assert service.ask(body(request_id=flags), headers=header).status_code == 200
    ((heard_id, answer),) = heard
    assert (heard_id, answer.request_id) == (trace_id, "01")


def test_a_refused_ranking_leaves_a_span_if_its_caller_samples(service, monkeypatch):
    heard = []
    monkeypatch.setattr(
        "serve.http.app.record_failed",
        lambda parent, scope, status, seconds: heard.append((scope["path"], status)),
    )
    header = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    assert service.ask({"viewer": 7}, headers=header).status_code == 422
    assert service.ask({"viewer": 7}).status_code == 422
    assert heard == [("/v1/rank", 422)]


def test_every_request_is_timed_by_method_route_and_status(service, monkeypatch):
    heard = []
    monkeypatch.setattr(
        service.fetcher.metrics, "answered", lambda *labels_and_seconds: heard.append(labels_and_seconds)
    )

    async def asked():
        await refresh(service.fetcher)
        async with service.client() as client:
            await client.post("/v1/rank", json=body())
            await client.get("/readyz")
            await client.get("/docs/docs.css")
            await client.request("BREW", "/v1/secret/../x")
            await client.post("/ranking/v1/rank", json=body())

    asyncio.run(asked())
    assert [labels for *labels, _ in heard] == [
        ["POST", "/v1/rank", 200],
        ["GET", "/readyz", 200],
        ["GET", "/docs/{file}", 200],
        ["_OTHER", "", 404],
        # A caller of a route of before.
        ["POST", "/v1/rank", 404],
    ]
    assert all(0 < seconds < 10 for *_, seconds in heard)


def test_an_exporter_that_raises_fails_no_ranking_and_is_logged_once(service, monkeypatch, caplog):
    def broken(parent, scope, answer):
        raise RuntimeError("the collector is gone")

    monkeypatch.setattr("serve.http.app.record", broken)
    header = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}

    async def twice():
        await refresh(service.fetcher)
        async with service.client() as client:
            return [await client.post("/v1/rank", json=body(), headers=header) for _ in range(2)]

    assert [response.status_code for response in asyncio.run(twice())] == [200, 200]
    assert caplog.text.count("span not exported: RuntimeError: the collector is gone") == 1


def test_a_fault_of_ours_is_told_without_details(service, caplog):
    service.fetcher.features = None
    response = service.ask(body(), headers={"x-request-id": "find-me"})
    assert response.status_code == 500
    assert response.json()["request_id"] == "find-me"
    assert "NoneType" not in response.text
    assert "find-me" in caplog.text
    assert caplog.records[-1].request_id == "find-me"


def test_the_documents_and_probes_answer(service):
    document = service.ask(path="/openapi.json", method="GET").json()
    validate(document)
    assert set(document["paths"]) == {
        "/v1/rank",
        "/v1/events",
        "/v1/model",
        "/livez",
        "/readyz",
        "/openapi.json",
        "/docs",
    }
    fields = document["components"]["schemas"]["RankRequest"]["properties"]
    assert "impression" in json.dumps(fields["limit"])
    assert "no impressions" in fields["traffic"]["description"]
    assert service.ask(path="/livez", method="GET").json() == {"live": True}
    assert service.ask(path="/readyz", method="GET").json()["live_candidates"] == 4
    described = service.ask(path="/v1/model", method="GET").json()
    assert described["limits"]["candidates"] == 1_000
    assert described["clock"] == "event"
    assert "topic_affinity" in described["features"]


def test_the_page_of_the_documents_names_files_that_a_browser_may_keep(service):
    page = service.ask(path="/docs", method="GET")
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    # Relative addresses work below any route prefix.
    addresses = re.findall('(?:src|href)="(docs/[^"?]+)[?]v=[0-9a-f]{8}"', page.text)
    assert len(addresses) == 4
    for address in addresses:
        plain = service.ask(path=f"/{address}", method="GET", headers={"accept-encoding": "identity"})
        zipped = service.ask(path=f"/{address}", method="GET", headers={"host": "another.example"})
        assert (plain.status_code, zipped.status_code) == (200, 200)
        assert plain.content == zipped.content
        assert "content-encoding" not in plain.headers
        assert (zipped.headers["content-encoding"], zipped.headers["vary"]) == ("gzip", "accept-encoding")
        assert int(zipped.headers["content-length"]) < len(plain.content)
        assert "immutable" in plain.headers["cache-control"]
    assert service.ask(path="/docs/docs.js", method="HEAD").content == b""
    assert service.ask(path="/docs/docs.js", method="POST").status_code == 405
    assert service.ask(path="/docs/app.py", method="GET").status_code == 404


def test_a_caller_sees_in_the_status_that_records_were_rejected(service):
    good = {"type": "event", "id": "e1", "viewer": "ann", "candidate": "a", "kind": "join", "ts_ms": NOW_MS}
    bad = good | {"kind": "jion"}

    def taken(*records):
        response = service.ask({"records": records}, path="/v1/events")
        return response.status_code, response.json()["accepted"], len(response.json()["rejected"])

    assert taken(good) == (200, 1, 0)
    assert taken(good, bad) == (207, 1, 1)
    assert taken(bad) == (207, 0, 1)


def test_the_live_table_follows_the_store(tmp_path, service):
    assert service.ask(path="/readyz", method="GET").json()["live_candidates"] == 4
    parts = tables()
    write_log(tmp_path / "other", parts | {"candidates": parts["candidates"].slice(0, 3)})
    load(load_surface(str(tmp_path / "tiny.toml")), tmp_path / "other", "lmdb:store", tmp_path)
    assert service.ask(path="/readyz", method="GET").json()["live_candidates"] == 3


def test_where_one_of_its_loops_fails_all_end_and_it_is_told(service):
    async def fail():
        raise RuntimeError("a fault of ours")

    async def scenario():
        service.fetcher.admission.run = fail
        async with asyncio.timeout(5):
            with pytest.raises(ExceptionGroup) as ended:
                await keep_up(service.fetcher)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return ended.value.exceptions

    (error,) = asyncio.run(scenario())
    assert str(error) == "a fault of ours"


def test_a_rollout_that_cannot_be_followed_stops_nothing(service, caplog):
    def fail(history, current, published):
        raise OSError("no history")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(History, "previous", fail)
        asyncio.run(refresh(service.fetcher))
    assert "model_refused: OSError: no history" in caplog.text
    assert service.ask(body()).json()["rung"] == "full"


def test_a_client_that_is_slow_to_send_its_body_is_refused(service, monkeypatch):
    monkeypatch.setattr("serve.http.body_reader.BODY_S", 0.05)
    monkeypatch.setattr("serve.http.body_reader.LOOK_S", 0.01)

    async def body_that_stops():
        yield b'{"viewer":'
        await asyncio.sleep(1.0)

    async def scenario():
        async with service.client() as client:
            headers = {"content-type": "application/json"}
            return await client.post("/v1/rank", content=body_that_stops(), headers=headers)

    response = asyncio.run(scenario())
    assert (response.status_code, response.headers["connection"]) == (408, "close")
    assert "was not complete within 0.05 s" in response.json()["detail"]
