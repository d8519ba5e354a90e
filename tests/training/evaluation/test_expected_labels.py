"""Test the expected labels of orders where the truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.evaluation_rows import dataset, judge, truth
from tests.support.expected import expected
from tests.support.position_world import examination as drawn_examination
from tests.support.position_world import sample
from training.evaluation.expected_labels import placed
from training.evaluation.metrics import Contender
from training.evaluation.slates import Slates
from training.evaluation.verdict import verdict
from training.examination.examination import Examination
from training.experiment.offline.estimate import compare

PER = 20
STEPS = np.where(np.arange(PER) < 4, 1.0, 0.25)
LEARNED = Examination("learned", tuple(STEPS), (0.0,) * PER, 1_000)


class Shown:
    """Slates that a popular order put in their positions, of viewers who look at the first ones."""

    def __init__(self, num_slates: int = 1_500, seed: int = 0, theta=STEPS) -> None:
        rng = np.random.default_rng(seed)
        taste, fame = rng.normal(0, 1.2, (num_slates, PER)), rng.normal(0, 1, (num_slates, PER))
        order = np.argsort(-fame, axis=1)
        taste, fame = (np.take_along_axis(values, order, 1).ravel() for values in (taste, fame))
        self.worth = 1 / (1 + np.exp(2.5 - taste))
        self.position = np.tile(np.arange(PER), num_slates)
        label = (rng.random(len(taste)) < theta[self.position] * self.worth).astype(np.float32)
        self.slates = Slates(
            label, np.repeat(np.arange(num_slates), PER), np.repeat(np.arange(num_slates) // 3, PER)
        )
        self.theta = theta
        noisy = 1 / (1 + np.exp(2.5 - taste + rng.normal(0, 1.5, len(taste))))
        self.contenders = {
            "popular": Contender.of(self.slates, fame, None),
            "biased": Contender.of(self.slates, self.worth * np.exp(fame), None),
            "noisy": Contender.of(self.slates, noisy, noisy),
            "oracle": Contender.of(self.slates, self.worth, self.worth),
        }

    def truth(self, name: str) -> float:
        place = placed(self.contenders[name], self.position)
        return float(self.theta[place] @ self.worth / len(self.slates))

    def found(self, examination=LEARNED):
        return expected(self.contenders, self.position, examination)


@pytest.fixture(scope="module")
def shown():
    return Shown()


def test_orders_earn_what_they_truly_earn_within_the_error(shown):
    found = shown.found()
    for name in ("biased", "noisy", "oracle"):
        value, error = found.difference(name, "popular")
        assert value == pytest.approx(shown.truth(name) - shown.truth("popular"), abs=3 * error)
        assert value > 5 * error
        low, high = found.value(name)[1]
        assert low < shown.truth(name) < high
    # NDCG prefers the order that agrees more with the positions that were looked at.
    biased, oracle = (shown.contenders[name].ndcg.mean() for name in ("biased", "oracle"))
    assert biased > oracle
    value, error = found.difference("oracle", "biased")
    assert value > 2 * error


def test_the_error_is_the_spread_of_the_estimate():
    found = [world.found().difference("oracle", "noisy") for world in (Shown(150, i) for i in range(40))]
    value, error = np.array(found).T
    assert error.mean() == pytest.approx(value.std(), rel=0.3)


def test_the_shown_order_earns_the_labels_of_the_log(shown):
    value, _ = shown.found().value("popular")
    assert value == pytest.approx(shown.slates.label.sum() / len(shown.slates))


def test_chances_as_shown_change_nothing(shown):
    chance = shown.worth * STEPS[shown.position]
    contenders = shown.contenders | {"oracle": Contender.of(shown.slates, shown.worth, chance)}
    again = expected(contenders, shown.position, LEARNED)
    assert again.value("oracle") == shown.found().value("oracle")


def test_an_uncertain_curve_widens_the_error(shown):
    sure = shown.found().difference("oracle", "popular")
    doubtful = replace(LEARNED, error=tuple(0.2 * (STEPS < 1)))
    unsure = shown.found(doubtful).difference("oracle", "popular")
    assert unsure[0] == sure[0]
    assert unsure[1] > 1.5 * sure[1]


@pytest.mark.parametrize("is_drawn", [1.0, 0.5])
def test_orders_that_were_drawn_are_measured_by_the_draw(is_drawn):
    """Half of the slates show the logged order; the estimate of drawn ones is the offline one."""
    world = sample(np.random.default_rng(3), 250)
    num, per = world.drawn.weight.shape
    weight = world.drawn.weight.copy()
    weight[np.random.default_rng(0).random(num) >= is_drawn] = np.nan
    slates = Slates(
        world.drawn.reward.ravel().astype(np.float32),
        np.repeat(np.arange(num), per),
        np.repeat(world.drawn.cluster, per),
    )
    chances = {name: 1 / (1 + np.exp(-odds.ravel())) for name, odds in world.odds.items()}
    contenders = {name: Contender.of(slates, one, one) for name, one in chances.items()}
    position = np.tile(np.arange(per), num)
    contenders["shown"] = Contender.of(slates, -position, None)
    curve = Examination("explored", tuple(drawn_examination()), (0.0,) * per, 1_000)
    found = expected(contenders, position, curve, weight.ravel())
    # The draw tells what the order would earn on average, not in these slates.
    logged, (low, high) = slates.label.sum() / num, found.value("shown")[1]
    assert low < logged < high
    assert abs(found.value("shown")[0] - logged) > 1e-6
    assert found.about["explored_rows"] == np.isfinite(weight).sum()
    for name, sign in (("better", 1), ("worse", -1), ("reversed", -1)):
        value, error = found.difference(name, "logging")
        assert sign * value > 2 * error
    order = np.argsort(-world.odds["better"], axis=1)
    want = (np.take_along_axis(world.worth, order, 1) @ drawn_examination()).mean()
    assert found.value("better")[1][0] < want < found.value("better")[1][1]
    if is_drawn == 1.0:
        offline = compare(world.drawn, chances["better"].reshape(num, per))
        assert found.value("better")[0] == pytest.approx(offline["model"]["value"], rel=0.05)


def test_the_rows_between_pins_earn_what_they_would_in_truth():
    world = sample(np.random.default_rng([0, 9]), 1_000, pins=0.5)
    rest, theta = np.isfinite(world.drawn.weight), drawn_examination()
    slate, position = np.nonzero(rest)
    slates = Slates(world.drawn.reward[rest].astype(np.float32), slate, world.drawn.cluster[slate])
    chances = {name: 1 / (1 + np.exp(-odds[rest])) for name, odds in world.odds.items()}
    contenders = {name: Contender.of(slates, one, one) for name, one in chances.items()}
    curve = Examination("explored", tuple(theta), (0.0,) * len(theta), 1_000)
    found = expected(contenders, position, curve, world.drawn.weight[rest])
    truth = {
        name: float(theta[placed(one, position)] @ world.worth[rest] / len(slates))
        for name, one in contenders.items()
    }
    for name in ("better", "worse", "reversed"):
        low, high = found.value(name)[1]
        assert low < truth[name] < high
        value, error = found.difference(name, "logging")
        assert abs(value - (truth[name] - truth["logging"])) < 2.5 * error


def test_what_the_rows_cannot_support_is_named(shown):
    reasons = {
        "the model knows no examination of positions (position_bias ignored": shown.found(Examination()),
        "examination is the same at all positions within its error": shown.found(
            Examination("learned", tuple(0.99 * STEPS**0.01), (0.02,) * PER, 200)
        ),
        "effective label events, and 50 are needed": Shown(15).found(),
        "all rows are of one viewer": Shown(2).found(),
    }
    alone = Slates(shown.slates.label, *2 * [np.arange(len(shown.position))])
    single = {"model": Contender.of(alone, shown.worth, shown.worth)}
    reasons["most slates have one candidate"] = expected(single, shown.position, LEARNED)
    for text, found in reasons.items():
        assert text in found.about["reason"]
        assert found.difference("model", "popular") == (None, None)
        assert found.value("model") == (None, None)
    assert "set `explore` for an arm in cluster.yaml" in shown.found(Examination()).about["reason"]


def test_where_all_positions_are_looked_at_no_order_is_better():
    flat = Shown(300, theta=np.ones(PER))
    same = flat.found(replace(LEARNED, theta=(1.0,) * PER))
    assert "so every order earns the same" in same.about["reason"]
    # A curve that is nearly flat, and sure of it: the differences are as small.
    near = flat.found(replace(LEARNED, theta=tuple(1 - 0.001 * np.arange(PER)), error=(0.0001,) * PER))
    value, _ = near.difference("oracle", "popular")
    assert value < 0.02 * near.value("popular")[0]


def test_an_evaluation_decides_by_expected_labels_and_says_so(surface):
    data = dataset(surface)
    curve = Examination("learned", (1.0, 0.7, 0.5, 0.4, 0.3, 0.3), (0.0,) * 6, 900)
    scores = {"model": truth(data), "current": np.clip(0.9 * truth(data) ** 2, 0, 1)}
    found = judge(data, scores, surface, examination=curve)
    pair = found["paired"]["model-popular"]
    assert pair["gate"] == {"by": "expected_labels", "beats": True, "agrees": True}
    gain = found["model"]["expected_labels"] - found["popular"]["expected_labels"]
    assert pair["expected_labels"] == pytest.approx(gain)
    assert 0 < 2 * pair["expected_labels_se"] < gain
    low, high = found["intervals"]["model"]["expected_labels"]
    assert low < found["model"]["expected_labels"] < high
    bounds = found["paired"]["model-current"]["bounds"]
    assert [bound["measure"] for bound in bounds] == ["ndcg@10", "logloss", "ece", "expected_labels"]
    assert verdict(found).startswith("The model beats popular: expected labels per exposure +")
    assert "to measure it, set `explore` for an arm" in verdict(found)
    ignored = judge(data, scores, surface)
    assert ignored["paired"]["model-popular"]["gate"]["by"] == "ndcg@10"
    assert "NDCG@10 decides and not expected labels: the model knows no examination" in verdict(ignored)
