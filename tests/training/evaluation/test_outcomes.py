"""Test the evaluation of several outcomes: each of them, and what an order is worth."""

from __future__ import annotations

import copy
import html
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from serve.features.matrix import Columns, Matrix
from serve.features.surface import read_surface
from tests.support.evaluation_rows import evaluation as make_evaluation
from tests.support.small_surface import TOML
from tests.support.trade_world import KNOWN, OUTCOMES, trade
from tests.training.evaluation.test_report import MANIFEST
from training.evaluation.evaluate import assess
from training.evaluation.metrics import Contender, calibrated, mean_and_error
from training.evaluation.outcomes import is_plain
from training.evaluation.paired import outcome_bounds
from training.evaluation.report import model_card, report_page
from training.evaluation.slates import Slates, auc
from training.evaluation.verdict import measures, outcome, standing, verdict

BOTH = [KNOWN, KNOWN]


def weighed(hide: float = -2.0):
    """Return the small surface with joins and hides."""
    rest = [line for line in TOML.splitlines() if not line.startswith(("events", "outcomes"))]
    outcomes = OUTCOMES.replace("hide = -2", f"hide = {hide}")
    return read_surface("\n".join([rest[1], outcomes, *rest[2:]]), "surface.toml")


@pytest.fixture(scope="module")
def world():
    made, num = trade(2_000, 0), 40_000
    bare = Matrix(np.empty((num, 0), np.float32), np.empty((num, 0), np.uint64))
    return replace(made, rows=replace(made.rows, columns=Columns((), (), ()), matrix=bare))


@pytest.fixture(scope="module")
def found(world):
    return assess(world.rows, {"model": world.shares}, weighed(), examinations=BOTH)


def judge(world, current, hide=-2.0, **settings):
    return assess(
        world.rows,
        {"model": world.shares, "current": current},
        weighed(hide),
        examinations=BOTH,
        current=BOTH,
        **settings,
    )


def test_an_order_is_judged_by_the_weighed_sum_and_each_outcome_by_itself(world, found):
    join, hide = found["outcomes"].values()
    assert list(found["outcomes"]) == ["join", "hide"]
    assert [join["weight"], hide["weight"]] == [1.0, -2.0]
    assert [join["is_bad"], hide["is_bad"]] == [False, True]
    assert hide["positives"] == world.rows.outcomes[:, 1].sum()
    label = world.rows.outcomes[:, 1]
    assert hide["model"]["auc"] == pytest.approx(auc(label, world.shares[:, 1]))
    # Popular predicts no outcome, and its order has amounts of each.
    assert set(hide["popular"]) == {"expected", "expected_interval"}
    weighed_sum = join["model"]["expected"] - 2 * hide["model"]["expected"]
    assert found["model"]["expected_utility"] == pytest.approx(weighed_sum)
    truth = world.earns({"join": 1.0, "hide": -2.0})
    low, high = found["intervals"]["model"]["expected_utility"]
    assert low < truth @ [1.0, -2.0] < high
    for about, true in zip((join, hide), truth, strict=True):
        low, high = about["model"]["expected_interval"]
        assert low < true < high
    pair = found["paired"]["model-popular"]
    assert pair["gate"] == {"by": "expected_utility", "beats": True}
    assert "expected_labels" not in pair
    # The order is that of the utility, and the probabilities are those of the primary outcome.
    assert found["model"]["auc"] == join["model"]["auc"]
    assert found["model"]["logloss"] == join["model"]["logloss"]


def test_the_error_of_the_weighed_sum_counts_what_outcomes_have_in_common(found):
    pair = found["paired"]["model-popular"]
    alone = [one["paired"]["model-popular"]["expected_se"] for one in found["outcomes"].values()]
    independent = np.hypot(alone[0], 2 * alone[1])
    assert pair["expected_utility_se"] != pytest.approx(independent, rel=1e-3)


def test_only_an_event_of_weight_1_is_its_own_worth():
    for declared, weight, plain in (
        ('event = "join", within = "10s"', 1, True),
        ('event = "join", within = "10s"', 2, False),
        # A share of two minutes that weigh a half is worth 1, and yet it is no probability.
        ('event = "join", until = "leave", cap = "2m", within = "10s"', 0.5, False),
    ):
        toml = TOML.replace('event = "join", within = "10s"', declared)
        given = read_surface(toml.replace("popular =", f"weights.join = {weight}\npopular =", 1))
        assert is_plain(given) is plain


def test_ndcg_gains_the_worth_of_rows_and_costs_lower_it():
    label, slate = np.array([1, 0, 0, 1, 0], np.float32), np.array([0, 0, 0, 1, 1])
    slates = Slates(label, slate, slate, np.array([1.0, -3.0, 0.0, 1.0, 0.0]))
    first, last = (slates.ndcg(slates.order(np.array(score))) for score in ([3, 2, 1, 2, 1], [3, 1, 2, 2, 1]))
    assert last.tolist() == [1.0 - 3.0 / 2.0, 1.0]
    assert first[0] == pytest.approx(1.0 - 3.0 / np.log2(3))
    # Nothing is to be gained where all rows cost.
    assert not Slates(label, slate, slate, -label).rankable.any()


def test_rows_with_an_open_window_count_for_the_other_outcomes_alone(world, found):
    outcomes = world.rows.outcomes.copy()
    outcomes[30_000:, 1] = np.nan
    rows = replace(world.rows, outcomes=outcomes)
    part = assess(rows, {"model": world.shares}, weighed(), examinations=BOTH)
    assert part["rows"] == found["rows"]
    assert part["outcomes"]["hide"]["rows"] == 30_000
    assert part["outcomes"]["join"]["model"]["auc"] == found["outcomes"]["join"]["model"]["auc"]
    # No window of an outcome has closed: it has no figures, and the rows do not support the sum.
    outcomes[:, 1] = np.nan
    none = assess(replace(rows, outcomes=outcomes), {"model": world.shares}, weighed(), examinations=BOTH)
    json.dumps(none, allow_nan=False)
    assert none["outcomes"]["hide"]["model"]["auc"] is None
    assert none["model"]["expected_utility"] is None
    assert "NDCG@10 decides and not expected utility: hide: " in verdict(none)


def test_a_bad_outcome_that_rises_is_said_in_the_headline(world, found):
    # Popular shows little bait: less of it is hidden, and joined.
    rows = replace(world.rows, popular=-world.rows.popular)
    risen = assess(rows, {"model": world.shares}, weighed(-0.05), examinations=BOTH)
    tone, words = outcome(risen)
    assert tone == "unsure"
    assert re.fullmatch(
        r"The model beats popular, but hide rises by [\d.]+ % ± [\d.]+ % beside popular", words
    )
    assert f"{words.removeprefix('The model beats popular, but h')}." in verdict(risen)
    # What is served decides: here the current model, which hides as little.
    now = copy.deepcopy(risen)
    now["contenders"].append("current")
    now["paired"]["model-current"] = now["paired"]["model-popular"] | {
        "rows": 1,
        "margin": 0.01,
        "bounds": [],
    }
    for about in now["outcomes"].values():
        about["current"] = about["popular"]
        about["paired"]["model-current"] = about["paired"]["model-popular"]
    assert outcome(now) == (tone, f"{words.removesuffix('popular')}the current model")
    # A good outcome that rises is no reason to doubt, nor is a bad one that falls.
    assert outcome(found) == ("good", "The model beats popular")
    rise = now["outcomes"]["hide"]["paired"]["model-current"]
    rise["expected_se"] = rise["expected"]
    assert outcome(now) == ("good", "The model beats popular")


def test_each_outcome_is_bounded_against_the_current_model(world):
    worse = world.shares.copy()
    worse[:, 1] = np.clip(8 * worse[:, 1], 0, 1)
    rows = {"model": worse, "current": world.shares}
    found = assess(world.rows, rows, weighed(), examinations=BOTH, current=BOTH)
    bounds = {
        (b["measure"], b.get("outcome")): b["holds"] for b in found["paired"]["model-current"]["bounds"]
    }
    assert bounds[("logloss", "hide")] is bounds[("ece", "hide")] is False
    assert bounds[("logloss", None)] is bounds[("ece", None)] is True
    assert "logloss of hide at least " in standing(found["paired"]["model-current"])
    equal = judge(world, world.shares)
    assert all(bound["holds"] for bound in equal["paired"]["model-current"]["bounds"])


def test_equal_models_of_a_rare_outcome_are_within_its_bounds():
    """Rows that stand for two count as one viewer's."""
    held, one_in = [], 2
    for seed in range(10):
        rng = np.random.default_rng(seed)
        logit = -5.8 + rng.normal(size=15_000)
        label = (rng.random(15_000) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        shares = [1 / (1 + np.exp(-logit - 0.3 * rng.normal(size=15_000))) for _ in range(2)]
        label, *shares = (np.tile(values, one_in) for values in (label, *shares))
        about = _rare(label, *(calibrated(label, share) for share in shares), one_in)
        held += [bound["holds"] for bound in outcome_bounds("hide", about)]
    assert np.mean(held) >= 0.95


def _rare(label, ours, theirs, one_in):
    """Return an outcome of slates of 10, each of its own viewer, that stand for `one_in` each."""
    slate = np.arange(len(label)) // 10
    viewer = np.tile(slate[: len(slate) // one_in], one_in)
    slates = Slates(label, slate, viewer)
    one, other = (Contender.of(slates, chance, chance) for chance in (ours, theirs))
    difference, error = one.minus(other, "logloss", least=0)
    pair = {"logloss": difference, "logloss_se": error}
    rate, rate_error = mean_and_error(label.astype(np.float64), viewer)
    about = {"mean_share": rate, "mean_share_se": rate_error, "paired": {"model-current": pair}}
    return about | {"model": one.measures(), "current": other.measures()}


def test_a_current_model_of_other_outcomes_is_compared_by_what_both_predict(world):
    theirs = world.shares.copy()
    theirs[:, 1] = np.nan
    found = judge(world, theirs)
    pair = found["paired"]["model-current"]
    assert pair["outcomes"] == ["join"]
    assert [bound.get("outcome") for bound in pair["bounds"]] == [None] * len(pair["bounds"])
    assert "auc" not in found["outcomes"]["hide"]["current"]
    assert "the current model predicts join alone, and is ordered by that" in standing(pair)
    # Without the primary outcome it has no probabilities to be bounded by.
    other = judge(world, theirs[:, ::-1].copy())
    assert [one["measure"] for one in other["paired"]["model-current"]["bounds"]][:1] == ["expected_utility"]
    assert other["current"]["logloss"] is None


def test_an_amount_has_the_correlation_of_its_prediction(world):
    surface = read_surface(
        TOML.replace(
            'outcomes.join = { event = "join", within = "10s" }',
            'outcomes.stay = { event = "join", until = "leave", cap = "50m", within = "10s" }',
        ),
        "surface.toml",
    )
    data = world.rows.of(0)
    minutes = data.label * np.random.default_rng(0).uniform(0.1, 0.5, len(data)).astype(np.float32)
    data = replace(data, outcomes=minutes[:, None])
    found = assess(data, {"model": 0.3 * world.shares[:, :1]}, surface, examinations=[KNOWN])
    stay = found["outcomes"]["stay"]
    shown = 0.3 * world.shares[:, 0] * KNOWN.at(data.position)
    assert stay["model"]["correlation"] == pytest.approx(np.corrcoef(minutes, shown)[0, 1], abs=1e-6)
    assert stay["positives"] == found["positives"] == (minutes > 0).sum()
    # In minutes.
    assert stay["model"]["expected"] == pytest.approx(found["model"]["expected_utility"])
    assert 1.0 < stay["model"]["expected"] < 50.0
    assert found["model"]["ndcg@10"] <= 1.0


def test_the_page_and_the_card_have_each_outcome(surface, found):
    whole = copy.deepcopy(make_evaluation(surface)) | json.loads(json.dumps(found))
    del whole["search"]
    page, card = html.unescape(report_page(MANIFEST, whole)), model_card(MANIFEST, whole)
    assert "<h2>Outcomes</h2>" in page
    for text in (page, card):
        assert "hide, weight -2" in text
        assert "Expected utility is the sum of weights times amounts per exposure" in text
    assert "- **Outcomes**: `join` (weight 1): the event `join` within 10 s of being shown; `hide`" in card
    assert dict(line[:2] for line in measures(whole))["expected utility"].startswith(
        f"{found['model']['expected_utility']:.4f}"
    )
    single = report_page(MANIFEST, make_evaluation(surface))
    assert "<h2>Outcomes</h2>" not in single
