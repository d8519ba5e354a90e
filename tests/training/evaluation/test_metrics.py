from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from training.evaluation.bootstrap import Bootstrap
from training.evaluation.metrics import Contender, calibrated, deciles, ece, rce, reliability
from training.evaluation.slates import Slates


def rows(num_slates: int = 500, per: int = 6, seed: int = 0):
    """Return slates with labels drawn from known probabilities."""
    rng = np.random.default_rng(seed)
    chance = 1 / (1 + np.exp(2 - rng.normal(size=num_slates * per)))
    label = (rng.random(len(chance)) < chance).astype(np.float32)
    return Slates(label, np.repeat(np.arange(num_slates), per)), chance


def test_measures_over_rows_are_those_of_scikit_learn():
    slates, chance = rows()
    measured = Contender.of(slates, chance.astype(np.float32), chance).measures()
    assert measured["auc"] == pytest.approx(roc_auc_score(slates.label, chance.astype(np.float32)))
    assert measured["logloss"] == pytest.approx(log_loss(slates.label, chance), abs=1e-6)


def test_a_score_that_is_no_probability_has_only_measures_of_order():
    slates, chance = rows()
    measured = Contender.of(slates, 100 * chance, None).measures()
    assert [name for name, value in measured.items() if value is None] == ["logloss", "ece", "rce"]
    assert measured["auc"] == Contender.of(slates, chance, chance).auc


def test_what_one_label_or_slates_of_one_candidate_do_not_define_is_none():
    apart = Slates(np.float32([0, 1, 0]), np.arange(3))
    measured = Contender.of(apart, *2 * [np.float64([0.1, 0.5, 0.2])]).measures()
    undefined = {name for name, value in measured.items() if value is None}
    assert undefined == {"ndcg@10", "ndcg@5", "map", "mrr", "slate_auc"}
    together = Slates(np.float32([0, 0]), np.int64([0, 0]))
    one_label = Contender.of(together, *2 * [np.float64([0.1, 0.2])]).measures()
    assert {name for name, value in one_label.items() if value is not None} == {"logloss", "ece"}


def test_intervals_hold_the_measures_and_are_plain_data():
    slates, chance = rows()
    contender = Contender.of(slates, chance, chance)
    measures, intervals = contender.measures(), contender.intervals(Bootstrap(slates.cluster))
    assert set(intervals) == {"ndcg@10", "auc", "logloss", "slate_auc"}
    for name, (low, high) in intervals.items():
        assert low < measures[name] < high
        assert high - low < 0.1
    json.dumps([measures, intervals], allow_nan=False)


def test_intervals_cover_the_truth_as_often_as_they_say():
    slates, chance = rows(20_000, seed=1)
    truth = Contender.of(slates, chance, chance).measures()
    hits = {"auc": 0, "logloss": 0, "slate_auc": 0, "ndcg@10": 0}
    for seed in range(40):
        part, values = rows(300, seed=100 + seed)
        found = Contender.of(part, values, values).intervals(Bootstrap(np.arange(300), 200))
        for name in hits:
            hits[name] += found[name][0] <= truth[name] <= found[name][1]
    assert all(33 <= count <= 40 for count in hits.values()), hits


def test_rce_is_0_for_the_base_rate_and_100_for_the_truth():
    label = np.float32([0, 0, 0, 1])
    assert rce(label, np.full(4, 0.25)) == pytest.approx(0, abs=1e-9)
    assert rce(label, np.clip(label.astype(float), 1e-9, 1 - 1e-9)) == pytest.approx(100, abs=1e-4)
    assert rce(label, np.full(4, 0.9)) < 0
    assert rce(np.float32([1, 1]), np.full(2, 0.9)) is None


def test_calibration_error_is_the_mean_gap_of_its_bins():
    label = np.float32([0, 1] * 150)
    assert ece(label, np.full(300, 0.7)) == pytest.approx(0.2)
    assert ece(np.float32([0] * 150 + [1] * 150), np.repeat([0.1, 0.8], 150), bins=2) == pytest.approx(0.15)


def test_a_reliability_curve_of_true_probabilities_is_the_diagonal():
    slates, chance = rows(5_000)
    predicted, observed = np.array(reliability(slates.label, chance)).T
    assert len(predicted) == 15
    np.testing.assert_allclose(predicted, observed, atol=0.04)
    assert (np.diff(predicted) > 0).all()


def test_lift_and_gain_go_by_decile_of_score():
    label = np.repeat([1, 0, 1, 0], [100, 400, 100, 400]).astype(np.float32)
    score = np.repeat([3.0, 2.0, 1.0, 0.0], [100, 400, 100, 400])
    found = deciles(label, score)
    assert found["lift"] == [5, 0, 0, 0, 0, 5, 0, 0, 0, 0]
    assert found["gain"] == [0, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 1, 1, 1, 1]
    # Ties are not broken by the log's order.
    assert deciles(label, np.zeros(1_000))["lift"][0] == pytest.approx(1, abs=0.5)
    assert deciles(np.zeros(100, np.float32), np.zeros(100)) == {"lift": None, "gain": None}


def test_a_score_is_calibrated_in_its_favour_whatever_its_scale():
    slates, chance = rows(3_000)
    logit = np.log(chance / (1 - chance))
    for score in (logit, np.exp(logit), 1e3 * logit, np.where(logit < -5, np.nan, logit)):
        loss = log_loss(slates.label, calibrated(slates.label, score))
        assert loss == pytest.approx(log_loss(slates.label, chance), abs=0.01)
