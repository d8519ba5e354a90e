from __future__ import annotations

import asyncio
import dataclasses
import time

import numpy as np
import pytest
from msgspec import structs
from pyarrow.parquet import read_table

from serve.config.settings import POPULAR, Arm, Experiment, UserConfig
from serve.contract.hashing import hash64
from serve.features.matrix import Columns, Features, Matrix
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.model.scorer_cache import timed
from serve.ranking import in_process_scoring
from serve.ranking.load_shedding import TICK_S, TICKS
from serve.ranking.reasons import MAX_BYTES, MAX_EXPLAINED, MAX_ROWS, explain
from serve.ranking.responses import MAX_REASONS
from serve.ranking.utility import Weighing
from tests.support.live_service import Live
from tests.support.slates import slate_of
from tests.support.small_surface import TOML
from tests.support.stub_artifact import MODEL

COLUMNS = Features(Schema(read_surface(TOML))).columns
WEIGHTS = {"price": 0.3, "joins": -0.5, "same_language": 0.8}
IN_NEWS, MISSING_PRICE = 0.9, 2.0


def log_odds(matrix: Matrix):
    """Score rows by known weights of log-odds; all other features count for nothing."""
    odds = np.full(len(matrix.numeric), -1.0)
    for name, weight in WEIGHTS.items():
        value = matrix.numeric[:, COLUMNS.numeric.index(name)].astype(np.float64)
        odds += np.where(np.isnan(value), MISSING_PRICE if name == "price" else 0.0, weight * value)
    return odds + IN_NEWS * (matrix.category[:, COLUMNS.single.index("topic")] == hash64("news"))


class Scorer:
    """Scorer of known weights that records its calls; `trouble` comes before reasons."""

    def __init__(self):
        self.calls = []
        self.trouble = None

    async def __call__(self, version, payload):
        matrix = Matrix.from_bytes(payload)
        self.calls.append(matrix)
        # Rankings of the tests have at most six rows.
        if self.trouble is not None and len(matrix.numeric) > 6:
            await self.trouble()
        return timed((1 / (1 + np.exp(-log_odds(matrix)))).astype(np.float32).tobytes(), 1.0)


@pytest.fixture
def service(tmp_path, log_folder):
    live = Live(tmp_path, log_folder)
    live.score = Scorer()
    return live


class Near:
    """Holder of the version in the replica, with the weights of `Scorer`; `trouble` comes first."""

    def __init__(self, trouble=None):
        self.sizes = []
        self.trouble = trouble

    async def prepare(self, version):
        pass

    def holds(self, version):
        return True

    def score_packed(self, version, payload):
        matrix = Matrix.from_bytes(payload)
        self.sizes.append(len(matrix.numeric))
        if self.trouble is not None:
            self.trouble()
        return timed((1 / (1 + np.exp(-log_odds(matrix)))).astype(np.float32).tobytes(), 1.0)


def ranked(service, **more):
    return service.run(lambda service: service.rank(explain=True, **more))["ranking"]


def by_name(candidate):
    return {reason["feature"]: reason for reason in candidate["reasons"]}


def test_contributions_are_the_weights_times_the_distance_from_the_typical_value(service):
    for candidate in ranked(service):
        for name, weight in WEIGHTS.items():
            reason = by_name(candidate).get(name)
            if reason is None:
                continue
            values = [candidate["features"][name], reason["typical"]]
            assert reason["value"] == values[0]
            ours, typical = (MISSING_PRICE if value is None else weight * value for value in values)
            assert reason["contribution"] == pytest.approx(ours - typical, abs=2e-4)
    # The prices are 1, missing and 4; same_language is 1, 0 and 1.
    reasons = {candidate["candidate"]: by_name(candidate) for candidate in ranked(service)}
    assert reasons["d"]["price"] | {"contribution": 0} == {
        "feature": "price",
        "label": "price",
        "value": 4.0,
        "typical": 1.0,
        "unit": None,
        "contribution": 0,
    }
    assert reasons["b"]["price"]["value"] is None
    assert reasons["b"]["same_language"]["contribution"] == pytest.approx(-0.8, abs=2e-4)
    assert reasons["b"]["same_language"]["unit"] == "yes/no"
    assert (reasons["b"]["topic"]["value"], reasons["b"]["topic"]["contribution"]) == (
        f"#{hash64('jazz'):016x}",
        pytest.approx(-0.9, abs=2e-4),
    )


def test_features_that_the_model_does_not_use_and_typical_values_are_no_reasons(service):
    for candidate in ranked(service):
        reasons = candidate["reasons"]
        assert {reason["feature"] for reason in reasons} <= {*WEIGHTS, "topic"}
        assert all(reason["value"] != reason["typical"] and reason["contribution"] for reason in reasons)
        sizes = [abs(reason["contribution"]) for reason in reasons]
        assert sizes == sorted(sizes, reverse=True)
    # A single candidate is typical.
    assert ranked(service, candidates=["a"])[0]["reasons"] == []
    assert ranked(service, candidates=[]) == []


def test_at_most_five_reasons_are_given(service):
    service.score.__class__ = type("", (Scorer,), {"__call__": everything_counts})
    assert max(len(candidate["reasons"]) for candidate in ranked(service)) == MAX_REASONS


async def everything_counts(scorer, version, payload):
    matrix = Matrix.from_bytes(payload)
    odds = np.nan_to_num(matrix.numeric).sum(axis=1) / 100 + (matrix.category % 7).sum(axis=1) / 100
    return timed((1 / (1 + np.exp(-odds))).astype(np.float32).tobytes(), 1.0)


def test_reasons_take_one_call_of_their_own_without_a_row_twice(service):
    async def scenario(service):
        await asyncio.gather(*(service.rank(request_id=name, explain=name < "c") for name in "abcd"))

    service.run(scenario)
    rankings = [
        call for call in service.score.calls if len(call.numeric) % 3 == 0 and len(call.numeric) <= 12
    ]
    others = [call for call in service.score.calls if not any(call is each for each in rankings)]
    assert sum(len(call.numeric) for call in rankings) == 4 * 3
    assert len(others) == 2
    for call in others:
        rows = np.concatenate([call.category.view(np.uint8), call.numeric.view(np.uint8)], axis=1)
        assert len(np.unique(rows, axis=0)) == len(rows)


def test_reasons_can_be_asked_for_without_the_features(service):
    with_features = ranked(service)
    alone = service.run(lambda service: service.rank(explain="reasons"))["ranking"]
    assert [candidate.pop("features") is not None for candidate in with_features] == [True] * 3
    assert alone == with_features
    assert any(candidate["reasons"] for candidate in alone)


@pytest.mark.parametrize("explain", ["features", 1, None])
def test_another_explanation_is_refused_by_name(service, explain):
    body = {"viewer": "ann", "candidates": ["a"], "now_ms": 50_000, "explain": explain}
    refused = service.run(lambda service: service.post("/v1/rank", body))
    assert (refused.status_code, refused.json()["pointer"]) == (422, "/explain")
    assert refused.json()["detail"].endswith('; write true, false or "reasons"')


def test_a_ranking_without_explain_has_no_reasons_and_takes_one_call(service):
    answer = service.run(lambda service: service.rank())
    assert not any({"features", "reasons"} & each.keys() for each in answer["ranking"])
    assert len(service.score.calls) == 1


def test_reasons_that_fail_cost_neither_the_ranking_nor_the_next_ones(service):
    async def trouble():
        raise RuntimeError("no reasons today")

    async def scenario(service):
        service.score.trouble = trouble
        # Several at once, which a circuit breaker of the rankings would count as failures in a row.
        failed = await asyncio.gather(*(service.rank(request_id=f"r{i}", explain=True) for i in range(6)))
        return failed, await service.rank(request_id="last")

    service.config = dataclasses.replace(service.config, max_batch_candidates=6)
    failed, last = service.run(scenario)
    assert [(answer["rung"], answer["model"]) for answer in (*failed, last)] == [("full", MODEL)] * 7
    assert all(each["reasons"] is None and each["features"] for each in failed[0]["ranking"])


def test_reasons_that_come_too_late_are_left_out(service):
    service.score.trouble = lambda: asyncio.sleep(5)
    service.config = dataclasses.replace(service.config, deadline_ms=100)
    begun = asyncio.run(timed_ranking(service))
    assert begun < 1.0


def test_reasons_are_scored_in_the_replica_and_rankings_elsewhere(service):
    called = ranked(service)
    service.score, service.in_process = Scorer(), Near()
    assert [by_name(each) for each in ranked(service)] == [by_name(each) for each in called]
    assert [len(call.numeric) for call in service.score.calls] == [3]
    assert len(service.in_process.sizes) == 1


def fails():
    raise RuntimeError("no reasons today")


@pytest.mark.parametrize("trouble", [fails, lambda: time.sleep(0.6)], ids=["fails", "is late"])
def test_reasons_that_fail_or_come_too_late_in_the_replica_are_left_out(service, trouble, monkeypatch):
    # In a thread, like many rows.
    monkeypatch.setattr(in_process_scoring, "FEW_ROWS", 0)
    service.in_process = Near(trouble)
    service.config = dataclasses.replace(service.config, deadline_ms=100)
    assert asyncio.run(timed_ranking(service)) < 0.5


async def timed_ranking(service):
    async with service.running():
        loop = asyncio.get_running_loop()
        begun = loop.time()
        answer = await service.rank(explain=True)
        assert answer["rung"] == "full"
        assert {each["reasons"] for each in answer["ranking"]} == {None}
        return loop.time() - begun


def test_load_shedding_drops_reasons_before_scores(service):
    async def scenario(service):
        shedder = service.fetcher.admission.load_shedder
        shedder.enabled = True
        for _ in range(TICKS + 1):
            shedder.answered(0.4, is_scored=True)
            shedder.tick(TICK_S, 1.0)
        assert 0 < shedder.level < 0.5
        return await service.rank(explain=True)

    answer = service.run(scenario)
    assert answer["rung"] == "full"
    assert {each["reasons"] for each in answer["ranking"]} == {None}
    assert answer["ranking"][0]["features"]


def test_the_popular_order_has_no_reasons(service):
    arm = Arm("plain", POPULAR, 1.0)
    service.config = UserConfig(Experiment("launch", "s", (arm,)), 1_000, load_shedding=False)
    assert {each["reasons"] for each in ranked(service)} == {None}
    assert service.score.calls == []


def test_an_ended_candidate_has_no_reasons_and_is_not_typical(service):
    first, *_, last = ranked(service, candidates=["c", "a", "b"])
    assert (last["candidate"], last["reasons"]) == ("c", None)
    assert first["reasons"]


def test_the_log_holds_the_same_with_reasons_and_without(service):
    async def scenario(service):
        for name in ("plain", "explained"):
            await service.rank(request_id=name, explain=name == "explained")

    service.run(scenario)
    table = read_table(service.folder / "served" / "exposures").to_pylist()
    plain, explained = ({k: v for k, v in row.items() if "ms" not in k} for row in table)
    assert plain["numeric"]
    differing = {key for key in plain if plain[key] != explained[key]} - {"request_id", "seq", "seen_seq"}
    # The first impression is a feature of the second ranking, and bears the declaration.
    assert differing <= {"numeric", "declaration"}


def test_numbers_are_the_shortest_that_are_the_same_float32(service):
    (unknown,) = ranked(service, candidates=["new"])
    assert unknown["features"]["join_rate"] == 0.1
    (seen,) = ranked(service, candidates=["b"], request_id="r2")
    assert str(seen["features"]["join_rate"]) == str(np.float32(seen["features"]["join_rate"]))


def test_rows_that_many_candidates_need_are_scored_once_and_unscored_ones_are_not_typical():
    columns, calls = Columns(("followed", "price"), (), ()), []

    async def call(version, payload):
        calls.append(Matrix.from_bytes(payload).numeric)
        return timed(np.full(len(calls[-1]), 0.5, np.float32).tobytes(), 1.0)

    # Seven candidates with (0, 1), three with (1, 1), and more without a score, unlike them.
    numeric = np.array([[0, 1]] * 7 + [[1, 1]] * 3 + [[1, 99]] * 15, np.float32)
    score = np.where(np.arange(25) < 10, 0.5, np.nan)
    slate = slate_of(Matrix(numeric, np.zeros((25, 0), np.uint64)), score)
    explained = asyncio.run(explain(slate, columns, call, 25))
    assert explained.typical.numeric.tolist() == [[0.0, 1.0]]
    assert explained.contributions.shape == (10, 2)
    assert sorted(calls[0].tolist()) == [[0.0, 1.0], [1.0, 1.0]]


def test_a_pin_without_a_score_takes_no_digits_from_the_reasons_of_the_others():
    columns, numeric = Columns(("price",), (), ()), np.array([[1], [2], [3], [4]], np.float32)

    async def call(version, payload):
        return timed((1e-6 * Matrix.from_bytes(payload).numeric[:, 0]).tobytes(), 1.0)

    slate = slate_of(Matrix(numeric, np.zeros((4, 0), np.uint64)), np.array([4e-6, 3e-6, 2e-6, np.nan]))
    weighing = Weighing({"stay": 1.0}, [2.0])
    query = structs.replace(slate.query, weighing=weighing)
    pinned = structs.replace(slate, query=query, order=np.array([3, 0, 1, 2]))
    found = asyncio.run(explain(pinned, columns, call, 4)).contributions[:, 0]
    assert np.isnan(found[0])
    assert found[1:].any()


def unlike(num_candidates, columns):
    """Return candidates of which nearly no two values are alike."""
    rng = np.random.default_rng(0)
    shape = (num_candidates, columns.num_category)
    numeric = rng.normal(size=(num_candidates, len(columns.numeric))).astype(np.float32)
    return Matrix(numeric, rng.integers(1, 1 << 60, shape).astype(np.uint64))


@pytest.mark.parametrize(
    ("columns", "most"),
    [
        (Columns(("x",), (), ()), MAX_EXPLAINED),
        (Columns(tuple(f"x{i}" for i in range(20)), ("y",), (("z", 3),)), MAX_ROWS // 44),
        (Columns(("x",), (), tuple((f"z{i}", 256) for i in range(2))), (MAX_BYTES // 4_100) // 6),
    ],
)
def test_many_candidates_or_wide_rows_leave_the_last_unexplained(columns, most):
    matrix, calls = unlike(1_000, columns), []

    async def call(version, payload):
        calls.append(len(payload))
        num_rows = int.from_bytes(payload[:8], "little")
        assert num_rows <= MAX_ROWS
        return timed(np.full(num_rows, 0.5, np.float32).tobytes(), 1.0)

    slate = slate_of(matrix, np.linspace(0.9, 0.1, 1_000))
    explained = asyncio.run(explain(slate, columns, call, 1_000))
    assert most - 1 <= len(explained.contributions) <= most + 1
    assert calls[0] <= MAX_BYTES + 24
    assert len(asyncio.run(explain(slate, columns, call, 2)).contributions) == min(most, 2)


def test_a_score_that_is_not_finite_gives_no_reasons_instead_of_wrong_ones(service):
    async def nothing():
        return None

    service.score.trouble = nothing
    service.score.__class__ = type("", (Scorer,), {"__call__": not_finite})
    assert {str(each["reasons"]) for each in ranked(service)} == {"None"}


async def not_finite(scorer, version, payload):
    num_rows = int.from_bytes(payload[:8], "little")
    scores = np.full(num_rows, 0.5 if num_rows <= 3 else np.nan, np.float32)
    return timed(scores.tobytes(), 1.0)
