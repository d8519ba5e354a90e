"""Test that a headline claims what the rows show: better predictions are no better order."""

from __future__ import annotations

import html
from dataclasses import replace

import numpy as np
import pytest

from tests.support.evaluation_rows import dataset, judge
from tests.support.evaluation_rows import evaluation as make_evaluation
from tests.training.evaluation.test_report import MANIFEST
from training.evaluation.report import model_card, report_page
from training.evaluation.slates import auc
from training.evaluation.verdict import not_beaten, outcome, verdict
from training.examination.examination import Examination

PREDICTS = "The model predicts better than popular; a better order is not shown"


def drawn(surface, *, single: float, tilt: float, num_slates=3_000, seed=0):
    """Return rows and a model that knows who joins; in a slate it orders by `tilt` times the truth.

    A share `single` of the slates has one candidate, the others two. Popular knows the candidates
    and not the viewers.
    """
    rng = np.random.default_rng(seed)
    data = dataset(surface, num_slates=num_slates, per=2)
    data = data.take(np.flatnonzero((data.position == 0) | (data.slate >= single * num_slates)))
    viewer, candidate = 2.0 * rng.normal(size=num_slates)[data.slate], rng.normal(size=len(data))
    label = rng.random(len(data)) < 1 / (1 + np.exp(1 - viewer - candidate))
    popular = candidate + 0.5 * rng.normal(size=len(data))
    model = 1 / (1 + np.exp(1 - viewer - tilt * candidate))
    return replace(data, outcomes=(label.astype(np.float32))[:, None], popular=popular), model


def order_of(data, score) -> tuple[float, float, float]:
    """Return MAP, MRR and the AUC within slates of two candidates, of which one or both joined."""
    precisions, ranks, within = [], [], []
    for slate in np.unique(data.slate):
        rows = np.flatnonzero(data.slate == slate)
        hits = data.label[rows[np.argsort(-score[rows], kind="stable")]]
        if len(rows) < 2 or not hits.sum():
            continue
        places = np.flatnonzero(hits) + 1
        precisions.append((np.arange(1, len(places) + 1) / places).mean())
        ranks.append(1 / places[0])
        if hits.sum() == 1:
            within.append(float(hits[0]))
    return float(np.mean(precisions)), float(np.mean(ranks)), float(np.mean(within))


def assert_only_the_auc_is_better(data, model, found) -> None:
    assert auc(data.label, model) > auc(data.label, data.popular) + 0.1
    assert found["model"]["ndcg@10"] < found["popular"]["ndcg@10"]
    pairs = zip(order_of(data, model), order_of(data, data.popular), strict=True)
    assert all(ours < theirs for ours, theirs in pairs)


def test_a_worse_order_is_said_and_does_not_pass_however_well_it_predicts(surface):
    data, model = drawn(surface, single=0.6, tilt=-0.3)
    found = judge(data, {"model": model}, surface)
    assert_only_the_auc_is_better(data, model, found)
    pair = found["paired"]["model-popular"]
    assert pair["logloss"] < -2 * pair["logloss_se"]
    assert pair["gate"] == {"by": "ndcg@10", "beats": False}
    assert outcome(found) == ("bad", "The model orders worse than popular")
    (reason,) = not_beaten(found["paired"])
    assert reason.startswith("the model orders worse than popular: NDCG@10 -0.")
    # A model whose order is worse takes the place of no other one either.
    both = judge(data, {"model": model, "current": 1 / (1 + np.exp(-data.popular))}, surface)
    bounds = {one["measure"]: one["holds"] for one in both["paired"]["model-current"]["bounds"]}
    assert bounds == {"logloss": True, "ece": True, "ndcg@10": False}


def test_an_order_that_is_worse_within_error_is_not_claimed_as_better(surface):
    data, model = drawn(surface, single=0.93, tilt=-0.1)
    data = replace(data, popular=data.popular + 20.0 * np.random.default_rng(1).normal(size=len(data)))
    found = judge(data, {"model": model}, surface)
    assert_only_the_auc_is_better(data, model, found)
    assert found["paired"]["model-popular"]["gate"] == {"by": "logloss", "beats": True}
    assert outcome(found) == ("unsure", PREDICTS)
    assert not_beaten(found["paired"]) == []
    whole = make_evaluation(surface) | found
    whole["paired"]["model-lightgbm"] = whole["paired"]["model-popular"]
    page, card = report_page(MANIFEST, whole), model_card(MANIFEST, whole)
    assert f"<strong>{PREDICTS}</strong>" in page
    assert 'class="verdict unsure"' in page
    assert 'class="verdict good"' not in page
    assert f"On the test rows: {PREDICTS}: logloss" in card
    assert "; NDCG@10 -0." in verdict(whole)
    for text in (html.unescape(page), card):
        assert "beats" not in text


def test_slates_of_one_candidate_show_predictions_and_no_order(surface):
    data, model = drawn(surface, single=1.0, tilt=1.0)
    found = judge(data, {"model": model}, surface)
    assert outcome(found) == ("unsure", PREDICTS)
    assert "viewers as clusters; NDCG@10 –." in verdict(found)


def test_a_better_order_beside_slates_of_one_is_claimed(surface):
    data, model = drawn(surface, single=0.6, tilt=1.0)
    data = replace(data, popular=np.random.default_rng(1).normal(size=len(data)))
    found = judge(data, {"model": model}, surface)
    assert found["paired"]["model-popular"]["gate"] == {"by": "logloss", "beats": True}
    assert outcome(found) == ("good", "The model beats popular")


@pytest.mark.parametrize("theta", [None, np.array([1.0, 0.4])])
@pytest.mark.parametrize(
    ("tilt", "tone", "words"),
    [(-0.3, "bad", "The model orders worse than popular"), (0.0, "unsure", PREDICTS)],
)
def test_where_slates_have_an_order_better_predictions_do_not_pass(surface, theta, tilt, tone, words):
    data, model = drawn(surface, single=0.0, tilt=tilt)
    if tilt == 0.0:
        # Both orders are drawn.
        data = replace(data, popular=np.random.default_rng(1).normal(size=len(data)))
    examination = Examination() if theta is None else Examination("learned", theta, np.full(2, 0.01), 100)
    seen = np.random.default_rng(2).random(len(data)) < examination.at(data.position)
    data = replace(data, outcomes=(data.label * seen)[:, None])
    found = judge(data, {"model": model}, surface, examination=examination)
    by = found["paired"]["model-popular"]["gate"]["by"]
    assert by == ("ndcg@10" if theta is None else "expected_labels")
    assert outcome(found) == (tone, words)
    (reason,) = not_beaten(found["paired"])
    assert reason.startswith(words[0].lower() + words[1:])


def test_an_order_alone_is_said_to_be_better_where_logloss_decides(surface):
    data, model = drawn(surface, single=0.6, tilt=1.0)
    found = judge(data, {"model": model}, surface)
    pair = found["paired"]["model-popular"] | {"ndcg@10": 0.1, "se": 0.01, "logloss": 0.0}
    found["paired"]["model-popular"] = pair | {"gate": {"by": "logloss", "beats": False}}
    words = "The model orders better than popular; better predictions are not shown"
    assert outcome(found) == ("unsure", words)


def test_a_better_order_with_worse_predictions_is_said_to_be_both(surface):
    data, model = drawn(surface, single=0.0, tilt=1.0)
    data = replace(data, popular=np.random.default_rng(1).normal(size=len(data)))
    words = "The model orders better than popular, but predicts worse"
    # Its order is that of the model.
    found = judge(data, {"model": model**6}, surface)
    pair = found["paired"]["model-popular"]
    assert pair["gate"] == {"by": "ndcg@10", "beats": True}
    assert pair["logloss"] > 2 * pair["logloss_se"]
    assert outcome(found) == ("unsure", words)
    assert verdict(found).startswith(f"{words}: NDCG@10 +0.0")
    assert "viewers as clusters; logloss +0." in verdict(found)
    # Where most slates have one candidate, it does not pass.
    pair["gate"] = {"by": "logloss", "beats": False}
    assert outcome(found) == ("unsure", words)
    assert not_beaten(found["paired"])[0].startswith("the model orders better than popular, but")
