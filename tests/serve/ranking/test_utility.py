"""Utility of several outcomes: in the module, and in a service whose scorer predicts three."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from pyarrow.parquet import read_table

from serve.config.settings import Arm, Experiment, UserConfig
from serve.contract.errors import TabrankError
from serve.contract.rankings import RankRequest
from serve.features.matrix import Features, Matrix
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log.events import pack_raw, unpack
from serve.model.artifact import CANARY, CURRENT, load, point
from serve.model.compatibility import load_for
from serve.model.scorer_cache import timed
from serve.ranking.upkeep import refresh
from serve.ranking.utility import PROBABILITY, Weighing, Weighings, weighed
from serve.storage.atomic_files import content_of
from tests.support.live_service import Live
from tests.support.small_surface import TOML
from tests.support.stub_artifact import MODEL, publish_stub

JOIN = 'outcomes.join = { event = "join", within = "10s" }'
EVENTS = TOML.replace('"leave"]', '"leave", "hide"]')
THREE = EVENTS.replace(
    JOIN,
    f"""{JOIN}
outcomes.stay = {{ event = "join", until = "leave", cap = "60m", within = "1h" }}
outcomes.hide = {{ event = "hide", within = "1d" }}
outcomes.click = {{ event = "click", within = "10s" }}
weights = {{ join = 1.0, stay = 0.02, hide = -5.0 }}""",
)
MEASURED = THREE.replace("weights = { join = 1.0, stay = 0.02, hide = -5.0 }", "weights = { join = 1.0 }")
NEW = "20260102T000000Z-0001"
# Share of each outcome, by the price of the candidate: d would join most, and hide most.
SHARES = {1.0: (0.1, 0.2, 0.0), 0.5: (0.2, 0.1, 0.01), 4.0: (0.5, 0.3, 0.4)}
WEIGHTS = {"join": 1.0, "stay": 0.02, "hide": -5.0}


class Three(Live):
    """A service whose versions predict three outcomes by the price of a candidate."""

    def __init__(self, folder, log_folder, toml=THREE, arms=None, **config):
        super().__init__(folder, log_folder, clock="wall", toml=toml, **config)
        self.calls = []
        self.num_outcomes = 3
        arms = (Arm("model", MODEL, 1.0),) if arms is None else arms
        self.config = replace(self.config, experiment=Experiment("launch", "s", arms))

    async def score(self, version, payload):
        price = np.nan_to_num(Matrix.from_bytes(payload).numeric[:, 0], nan=0.5)
        self.calls.append(len(price))
        shares = np.array([SHARES.get(float(one), (0.9, 0.9, 0.9)) for one in price], np.float32)
        return timed(np.ascontiguousarray(shares[:, : self.num_outcomes]).tobytes(), 1.0)


def utility_of(shares, weights):
    join, stay, hide = (float(np.float32(share)) for share in shares)
    return weights["join"] * join + weights["stay"] * 60 * stay + weights["hide"] * hide


@pytest.fixture
def service(tmp_path, log_folder):
    return Three(tmp_path, log_folder)


def by_candidate(answer):
    return {each["candidate"]: each for each in answer["ranking"]}


def test_a_score_is_the_utility_and_the_predictions_stand_beside_it_in_their_units(service):
    answer = service.run(lambda service: service.rank(candidates=["a", "b", "c", "d"]))
    found = by_candidate(answer)
    # c has ended: it is last, although d has a negative utility.
    assert list(found) == ["a", "b", "d", "c"]
    for name, price in {"a": 1.0, "b": 0.5, "d": 4.0}.items():
        assert found[name]["score"] == pytest.approx(utility_of(SHARES[price], WEIGHTS), abs=1e-6)
        join, stay, hide = SHARES[price]
        assert found[name]["predictions"] == pytest.approx({"join": join, "stay": 60 * stay, "hide": hide})
    assert found["d"]["score"] < -1
    assert (found["c"]["score"], found["c"]["predictions"]) == (None, None)


def logged(service):
    (path,) = (service.folder / "served" / "exposures").glob("*.parquet")
    (exposure,) = read_table(path).to_pylist()
    return exposure


def test_the_log_has_every_prediction_and_the_weights_that_were_applied(service):
    arm = Arm("model", MODEL, 1.0, weights={"stay": 0.5})
    service.config = replace(service.config, experiment=Experiment("launch", "s", (arm,)))
    answer = service.run(lambda service: service.rank(candidates=["a", "b", "c", "d"]))
    exposure = logged(service)
    assert json.loads(exposure["weights"]) == WEIGHTS | {"stay": 0.5}
    assert list(json.loads(exposure["weights"])) == ["join", "stay", "hide"]
    assert exposure["draw"] is None
    amounts = np.array([np.nan if one is None else one for one in exposure["predictions"]]).reshape(4, 3)
    for row, each in zip(amounts, answer["ranking"], strict=True):
        if each["predictions"] is None:
            assert np.isnan(row).all()
        else:
            np.testing.assert_array_equal(row, list(each["predictions"].values()))


def test_a_drawn_order_is_logged_with_the_log_weights_of_its_draw(service):
    arm = Arm("model", MODEL, 1.0, explore=1.0)
    service.config = replace(service.config, experiment=Experiment("launch", "s", (arm,)))
    service.run(lambda service: service.rank(candidates=["a", "b", "c", "d"]))
    exposure = logged(service)
    scores, drawn = np.array(exposure["scores"][:3]), np.array(exposure["draw"])
    np.testing.assert_allclose(drawn[:3], (scores - scores.mean()) / scores.std(), rtol=1e-5)
    assert (exposure["scores"][3], drawn[3]) == (None, -np.inf)
    odds = np.exp(drawn[:3])
    np.testing.assert_allclose(exposure["propensity"][:3], [odds[k] / odds[k:].sum() for k in range(3)])


def test_without_a_model_no_prediction_is_shown_or_logged(service):
    service.config = replace(
        service.config, experiment=Experiment("launch", "s", (Arm("p", "popular", 1.0),))
    )
    answer = service.run(lambda service: service.rank())
    assert {str(each["predictions"]) for each in answer["ranking"]} == {"None"}
    exposure = logged(service)
    assert (exposure["predictions"], exposure["weights"], exposure["draw"]) == (None, None, None)


def test_with_one_outcome_answer_and_exposure_are_as_they_were(tmp_path, log_folder):
    service = Three(tmp_path, log_folder, toml=EVENTS)
    service.num_outcomes = 1
    held = []

    async def scenario(service):
        put = service.fetcher.exposure_buffer.put
        service.fetcher.exposure_buffer.put = lambda exposure: (held.append(exposure), put(exposure))
        return await service.rank()

    answer = service.run(scenario)
    assert set(answer["ranking"][0]) == {"candidate", "score", "position"}
    assert answer["ranking"][0]["score"] == float(np.float32(0.5))
    fields = msgspec.msgpack.decode(pack_raw(held[0]))
    assert not {"predictions", "weights", "draw"} & fields.keys()
    assert unpack(msgspec.msgpack.encode([fields]))[0] == held[0]


def test_weights_changed_live_order_the_next_ranking(service):
    async def scenario(service):
        orders = [list(by_candidate(await service.rank()))]
        for weights in ({"hide": 0.0}, {"hide": -50.0, "join": 3.0}):
            arm = Arm("model", MODEL, 1.0, weights=weights)
            changed = replace(service.config, experiment=Experiment("launch", "s", (arm,)))
            await service.fetcher.settings.change(changed)
            found = by_candidate(await service.rank())
            orders.append(list(found))
            for name, price in {"a": 1.0, "b": 0.5, "d": 4.0}.items():
                utility = utility_of(SHARES[price], WEIGHTS | weights)
                assert found[name]["score"] == pytest.approx(utility, abs=1e-5)
            told = (await service.client.get("/v1/model")).json()
            (in_use,) = told["experiment"]["arms"]
            assert (in_use["weights"], told["weights"]) == (WEIGHTS | weights, WEIGHTS)
        return [order.index("d") for order in orders]

    assert service.run(scenario) == [2, 0, 2]


def test_arms_that_differ_in_weights_share_a_batch(tmp_path, log_folder):
    joins, stays = Arm("joins", MODEL, 0.5), Arm("stays", MODEL, 0.5, weights={"stay": 5.0, "hide": 0.0})
    service = Three(tmp_path, log_folder, arms=(joins, stays))

    async def scenario(service):
        rank, request = service.fetcher.rank, RankRequest("ann", ["a", "b", "d"])
        return await asyncio.gather(rank(request, arm=joins), rank(request, arm=stays))

    answers = service.run(scenario)
    assert service.calls == [6]
    for answer, weights in zip(answers, (WEIGHTS, WEIGHTS | stays.weights), strict=True):
        for each in answer.ranking:
            shares = SHARES[{"a": 1.0, "b": 0.5, "d": 4.0}[each.candidate]]
            assert each.score == pytest.approx(utility_of(shares, weights), abs=1e-5)


def refused(service, *arms):
    """Return why the running service refuses these arms; its settings must stay."""

    async def scenario(service):
        before = service.fetcher.settings.config
        experiment = Experiment("launch", "s", arms)
        await service.fetcher.settings.change(replace(service.config, experiment=experiment))
        assert service.fetcher.settings.config is before
        assert (await service.rank())["rung"] == "full"
        return str(service.fetcher.settings.error)

    return service.run(scenario)


def publish(service, toml, pointer=None, version=NEW):
    publish_stub(service.folder / "models", toml, version)
    if pointer:
        point(service.folder / "models", pointer, version, content_of(service.folder / "models" / pointer))


LACKS = (
    "weighs stay, and version {} predicts join; leave out stay, or give it a weight in the surface and fit"
)


@pytest.mark.parametrize("scorer", [NEW, "current", "canary"])
def test_an_arm_whose_version_lacks_an_outcome_is_refused_with_both_lists(tmp_path, log_folder, scorer):
    service = Three(tmp_path, log_folder, toml=MEASURED)
    service.num_outcomes = 1
    publish(service, MEASURED, {"current": CURRENT, "canary": CANARY}.get(scorer))
    message = refused(service, Arm("b", scorer, 1.0, weights={"stay": 0.1}))
    assert message.startswith("user_config.experiment.arms.b.weights: arm b " + LACKS.format(NEW))


def test_an_outcome_that_the_surface_does_not_have_is_refused_with_the_nearest(service):
    message = refused(service, Arm("model", MODEL, 1.0, weights={"hides": -1.0}))
    assert "user_config.experiment.arms.model.weights.hides:" in message
    assert "did you mean 'hide'?" in message
    message = refused(service, Arm("model", MODEL, 1.0, weights=dict.fromkeys(WEIGHTS, 0.0)))
    assert "all weights are 0" in message


def test_an_arm_without_a_model_has_no_weights():
    arms = {"p": {"scorer": "popular", "share": 1.0, "weights": {"join": 2.0}}}
    with pytest.raises(
        TabrankError,
        match="weights: weights are of a model's predictions, and popular has none; leave it out",
    ):
        UserConfig.from_mapping({"experiment": {"name": "e", "salt": "s", "arms": arms}})
    arms["p"] = {"scorer": "current", "share": 1.0, "weights": {"join": 1e9}}
    with pytest.raises(TabrankError, match=r"arms\.p\.weights\.join: .*1e\+06|1000000"):
        UserConfig.from_mapping({"experiment": {"name": "e", "salt": "s", "arms": arms}})


def test_a_promoted_version_without_an_outcome_of_an_arm_does_not_rank_for_it(tmp_path, log_folder):
    weighing, other = Arm("b", "current", 0.5, weights={"stay": 0.1}), Arm("a", "current", 0.5)
    service = Three(tmp_path, log_folder, toml=MEASURED, arms=(other, weighing))
    publish(service, MEASURED, CURRENT)
    service.num_outcomes = 1

    async def scenario(service):
        # A replica that starts after the promotion has these settings too.
        assert service.fetcher.settings.config.experiment.arms == (other, weighing)
        await refresh(service.fetcher)
        found = {one.name: one for one in service.fetcher.health.diagnoses()}
        assert "no_model" not in found
        rank, request = service.fetcher.rank, RankRequest("ann", ["a", "b", "d"])
        return found["outcomes_missing"], await rank(request, arm=other), await rank(request, arm=weighing)

    fault, others, mine = service.run(scenario)
    assert LACKS.format(NEW).partition(";")[0] in fault.cause
    assert (others.model, others.rung) == (NEW, "full")
    assert (mine.model, mine.degraded) == (None, ["no_model"])


def test_a_version_without_an_outcome_that_the_surface_weighs_is_refused_when_it_loads(tmp_path):
    publish_stub(tmp_path, TOML)
    with pytest.raises(TabrankError, match="weighs join, stay, hide, and it predicts join; fit a model"):
        load_for(tmp_path / MODEL, Features(Schema(read_surface(THREE))))
    publish_stub(tmp_path, THREE, NEW)
    assert list(load_for(tmp_path / NEW, Features(Schema(read_surface(MEASURED)))).outcomes) == list(WEIGHTS)


def test_an_outcome_that_nobody_weighs_counts_for_nothing(tmp_path, log_folder):
    service = Three(tmp_path, log_folder, toml=MEASURED)
    publish_stub(service.folder / "models", THREE)
    found = by_candidate(service.run(lambda service: service.rank()))
    assert found["d"]["score"] == float(np.float32(0.5))
    assert found["d"]["predictions"]["stay"] == pytest.approx(18)


def test_a_scorer_that_answers_for_other_outcomes_degrades_the_answer(service):
    service.num_outcomes = 2
    answer = service.run(lambda service: service.rank())
    assert answer["degraded"] == ["scorer_unavailable"]


def test_a_prediction_that_is_not_finite_leaves_its_candidate_unscored(service, monkeypatch):
    monkeypatch.setitem(SHARES, 1.0, (0.1, np.nan, 0.0))
    answer = service.run(lambda service: service.rank())
    assert answer["degraded"] == ["non_finite_score"]
    assert [each["candidate"] for each in answer["ranking"]][-1] == "a"
    assert answer["ranking"][-1]["predictions"] is None


def test_reasons_explain_the_utility(service):
    answer = service.run(lambda service: service.rank(explain=True))
    found = by_candidate(answer)
    # Only the price moves the predictions, and the typical price is 1.
    for name in ("b", "d"):
        (reason,) = found[name]["reasons"]
        assert (reason["feature"], reason["typical"]) == ("price", 1.0)
        difference = found[name]["score"] - found["a"]["score"]
        assert reason["contribution"] == pytest.approx(difference, rel=1e-3)
    assert found["d"]["reasons"][0]["contribution"] < -1


# The module.


def test_one_outcome_of_weight_and_cap_1_is_the_probability_itself():
    shares = np.random.default_rng(0).random((5, 1), np.float32)
    found, _ = weighed(shares, [PROBABILITY, Weighing({"join": 1.0}, [1.0])], np.zeros(5, np.int64))
    assert np.shares_memory(found, shares)
    assert found.tolist() == shares[:, 0].tolist()
    for other, factor in ((Weighing({"join": -1.0}, [1.0]), -1), (Weighing({"stay": 1.0}, [60.0]), 60)):
        assert not other.is_share
        np.testing.assert_allclose(other.utility(shares), factor * shares[:, 0], rtol=1e-6)


def test_a_utility_has_the_same_bits_in_any_batch():
    rng = np.random.default_rng(1)
    shares = rng.random((200, 3), np.float32)
    one, other = Weighing(WEIGHTS, [1.0, 60.0, 1.0]), Weighing({"join": 1.0}, [1.0])
    alone = one.utility(shares)
    wide = np.concatenate([shares, np.zeros((200, 2), np.float32)], axis=1)
    request = np.repeat([0, 1], 100)
    mixed, _ = weighed(wide, [one, other], request)
    assert mixed[:100].tolist() == alone[:100].tolist()
    assert mixed[100:].tolist() == shares[100:, 0].tolist()


def test_weighings_are_made_once_for_each_arm_and_version(tmp_path):
    publish_stub(tmp_path, THREE)
    artifact, weighings = load(tmp_path / MODEL), Weighings(read_surface(THREE))
    first = weighings.of({"stay": 0.5}, artifact)
    assert weighings.of({"stay": 0.5}, artifact) is first
    assert first.weights == WEIGHTS | {"stay": 0.5}
    assert first.scales == [1.0, 60.0, 1.0]
    assert weighings.of({"stay": 0.6}, artifact) is not first
    for i in range(100):
        weighings.of({"stay": float(i)}, artifact)
    assert weighings.of({"stay": 0.5}, artifact).weights == first.weights


def test_an_arm_may_not_reward_what_the_surface_punishes(tmp_path):
    publish_stub(tmp_path, THREE)
    arms = (Arm("model", CURRENT, 1.0, weights={"hide": 20.0}),)
    found = [*UserConfig(Experiment("e", "e", arms)).misfits(read_surface(THREE), tmp_path)]
    path = ("experiment", "arms", "model", "weights", "hide")
    assert found == [(path, "20 rewards a bad outcome; make it negative, or change the surface")]
