"""Unknown candidates are last without a score: for each arm, each rung and each viewer."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from serve.config.settings import NOOP, SHUFFLE
from serve.config.slate import Limit, Rule, Spread, Wanted
from serve.features.slots import FieldRef
from tests.serve.http.test_app import NOW_MS, RULE, Service, body, order
from tests.support.small_surface import TOML
from tests.support.stub_artifact import MODEL

# c has ended. The scorer of the tests gives 0.5 to what has no price, and less to a and d.
ASKED = ["NOPE", "c", "a", "zz", "d", "b"]
SCORED = f'unknown_candidates = "scored"\n{TOML}'


def unpriced_first(service):
    """Have the scorer put what has no price, as an unknown candidate, above all others."""
    service.scorer.answer = lambda price: np.where(np.isnan(price), 0.99, price / 10)


def overloaded(service, monkeypatch):
    row_bytes = service.fetcher.features.columns.row_bytes
    service.fetcher.batches.most_scored = 2
    monkeypatch.setattr("serve.ranking.batches.MAX_CALL_BYTES", 2 * row_bytes)


def without_scorer(service, monkeypatch):
    service.scorer.error = ConnectionError("gone")


def switched(service, monkeypatch):
    service.fetcher.settings.start(replace(service.fetcher.settings.config, kill_switch=True))


def broken(service, monkeypatch):
    async def fail(queries):
        raise OverflowError("of a neighbour")

    service.fetcher.batches._scored._work = service.fetcher.batches._unscored._work = fail


def with_rules(service, monkeypatch):
    experiment = service.fetcher.settings.config.experiment
    near = {"candidate.host": Wanted(("mia",))}
    rules = (Rule(limit=Limit(near, 0, 6)), Rule(spread=Spread("candidate.host", 1, 6)))
    arms = tuple(replace(arm, slate=rules) for arm in experiment.arms)
    service.fetcher.settings.config = replace(
        service.fetcher.settings.config, experiment=replace(experiment, arms=arms)
    )


def as_it_is(service, monkeypatch):
    pass


@pytest.mark.parametrize("viewer", ["ann", "nobody", None])
@pytest.mark.parametrize(
    "state",
    [as_it_is, overloaded, without_scorer, switched, broken, with_rules],
    ids=lambda one: one.__name__,
)
@pytest.mark.parametrize("arm", [MODEL, "explored", "popular", "baseline", NOOP, SHUFFLE, "current"])
def test_unknown_candidates_come_last_without_a_score(tmp_path, log_folder, monkeypatch, arm, state, viewer):
    options = {"arm": MODEL, "explore": 1.0} if arm == "explored" else {"arm": arm}
    service = Service(tmp_path, log_folder, toml=TOML + RULE, **options)
    unpriced_first(service)
    state(service, monkeypatch)
    answer = service.ask(body(viewer=viewer, candidates=ASKED)).json()
    last = answer["ranking"][-2:]
    assert {ranked["candidate"] for ranked in last} == set(answer["unknown_candidates"]) == {"NOPE", "zz"}
    assert [ranked["score"] for ranked in last] == [None, None]
    # The ended candidate is above them, and nothing else of the answer changes.
    assert order(answer)[3] == "c"
    known = service.ask(body(viewer=viewer, candidates=["c", "a", "d", "b"])).json()
    assert (answer["rung"], answer["degraded"]) == (known["rung"], known["degraded"])
    if arm not in ("explored", SHUFFLE):
        assert order(answer) == [*order(known), "NOPE", "zz"]


def test_what_only_unknown_candidates_lack_is_no_overload(tmp_path, log_folder, monkeypatch):
    service = Service(tmp_path, log_folder, arm=MODEL)
    overloaded(service, monkeypatch)
    sizes = []
    service.scorer.answer = lambda price: sizes.append(len(price)) or price / 10
    answer = service.ask(body(candidates=["x", "a", "y", "d", "z"])).json()
    assert (answer["rung"], answer["degraded"], sizes) == ("full", [], [2])
    assert order(answer) == ["d", "a", "x", "y", "z"]


@pytest.mark.parametrize("arm", [MODEL, "popular", "baseline", NOOP])
def test_of_unknown_candidates_alone_the_order_is_as_given(tmp_path, log_folder, arm):
    service = Service(tmp_path, log_folder, arm=arm, toml=TOML + RULE)
    answer = service.ask(body(candidates=["z", "y", "x"])).json()
    assert (order(answer), answer["rung"], answer["degraded"]) == (["z", "y", "x"], "full", [])
    assert service.scorer.calls == 0


def test_an_unknown_candidate_of_which_a_value_is_stated_is_scored(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm=MODEL)

    def asked(price):
        return service.ask(body(candidates=[{"candidate": "zz", "fields": {"price": price}}, "a"])).json()

    answer = asked(9.0)
    assert answer["ranking"][0] == {"candidate": "zz", "score": pytest.approx(0.9), "position": 1}
    assert answer["unknown_candidates"] == []
    # A stated null says no more than nothing.
    assert (order(asked(None)), asked(None)["ranking"][1]["score"]) == (["a", "zz"], None)
    assert asked(None)["unknown_candidates"] == ["zz"]


def test_a_surface_whose_clients_send_no_candidates_may_score_them(tmp_path, log_folder):
    service = Service(tmp_path, log_folder, arm=MODEL, toml=SCORED)
    answer = service.ask(body(candidates=["a", "what"])).json()
    assert [(each["candidate"], each["score"]) for each in answer["ranking"]] == [
        ("what", 0.5),
        ("a", pytest.approx(0.1)),
    ]
    assert (answer["unknown_candidates"], answer["rung"]) == (["what"], "full")


def test_an_unknown_candidate_is_logged_without_a_score_and_explained_by_its_features_alone(
    tmp_path, log_folder
):
    service = Service(tmp_path, log_folder, arm=MODEL, explore=1.0)
    answer = service.ask(body(candidates=["what", "a", "b"], explain=True)).json()
    assert answer["ranking"][2]["candidate"] == "what"
    assert answer["ranking"][2]["features"]["price"] is None
    assert answer["ranking"][2]["reasons"] is None
    assert answer["ranking"][0]["reasons"] is not None
    asyncio.run(service.fetcher.exposure_buffer.flush())
    (exposure,) = service.taken
    scores = np.frombuffer(exposure.scores, np.float32)
    assert np.isnan(scores).tolist() == [False, False, True]
    assert (exposure.candidates[2], exposure.propensity[2]) == ("what", 1)


def test_rankings_report_their_unknown_candidates_and_whether_they_lack_fields(
    tmp_path, log_folder, monkeypatch
):
    asked = FieldRef("context", "hour"), FieldRef("candidate", "price")
    monkeypatch.setattr("serve.model.compatibility.asked_fields", lambda artifact, surface: asked)
    service, seen = Service(tmp_path, log_folder, arm=MODEL), []
    service.fetcher.metrics.ranked = lambda slate, latency_ms: seen.append(
        (slate.num_unknown, slate.lacks_fields)
    )
    service.ask(body(candidates=["a", "x", "y"], context={"hour": 3.0}))
    service.ask(body(candidates=["a"], now_ms=NOW_MS + 1))
    # No price of b is stored, so the request must state it.
    dear = {"candidate": "b", "fields": {"price": 9.0}}
    service.ask(body(candidates=["b"], context={"hour": 3.0}))
    service.ask(body(candidates=[dear], context={"hour": 3.0}))
    assert seen == [(2, False), (0, True), (0, True), (0, False)]
