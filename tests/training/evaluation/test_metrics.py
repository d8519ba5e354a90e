from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from serve.model.graph import Calibration
from training.evaluation.metrics import Contender, calibrated, ece, fit_if_better, reliability
from training.evaluation.slates import Slates
from training.network.calibrate import fit_platt


def rows(num_slates: int = 500, per: int = 6, seed: int = 0):
    """Return slates with labels drawn from known probabilities."""
    rng = np.random.default_rng(seed)
    chance = 1 / (1 + np.exp(2 - rng.normal(size=num_slates * per)))
    label = (rng.random(len(chance)) < chance).astype(np.float32)
    return Slates(label, *2 * [np.repeat(np.arange(num_slates), per)]), chance


def test_measures_over_rows_are_those_of_scikit_learn():
    slates, chance = rows()
    measured = Contender.of(slates, chance.astype(np.float32), chance).measures()
    assert measured["auc"] == pytest.approx(roc_auc_score(slates.label, chance.astype(np.float32)))
    assert measured["logloss"] == pytest.approx(log_loss(slates.label, chance), abs=1e-6)


def test_a_score_that_is_no_probability_has_only_measures_of_order():
    slates, chance = rows()
    measured = Contender.of(slates, 100 * chance, None).measures()
    assert [name for name, value in measured.items() if value is None] == ["logloss", "ece"]
    assert measured["auc"] == Contender.of(slates, chance, chance).measures()["auc"]


def test_what_one_label_or_slates_of_one_candidate_do_not_define_is_none():
    apart = Slates(np.float32([0, 1, 0]), np.arange(3), np.arange(3))
    measured = Contender.of(apart, *2 * [np.float64([0.1, 0.5, 0.2])]).measures()
    undefined = {name for name, value in measured.items() if value is None}
    assert undefined == {"ndcg@10"}
    together = Slates(np.float32([0, 0]), *2 * [np.int64([0, 0])])
    one_label = Contender.of(together, *2 * [np.float64([0.1, 0.2])]).measures()
    assert {name for name, value in one_label.items() if value is not None} == {"logloss", "ece"}


def test_intervals_hold_the_measures_and_are_plain_data():
    slates, chance = rows()
    contender = Contender.of(slates, chance, chance)
    measures, intervals = contender.measures(), contender.intervals()
    assert set(intervals) == {"ndcg@10", "auc", "logloss"}
    for name, (low, high) in intervals.items():
        assert low < measures[name] < high
        assert high - low < 0.1
    json.dumps([measures, intervals], allow_nan=False)


def test_intervals_cover_the_truth_as_often_as_they_say():
    slates, chance = rows(20_000, seed=1)
    truth = Contender.of(slates, chance, chance).measures()
    hits = {"auc": 0, "logloss": 0, "ndcg@10": 0}
    for seed in range(40):
        part, values = rows(300, seed=100 + seed)
        found = Contender.of(part, values, values).intervals()
        for name in hits:
            hits[name] += found[name][0] <= truth[name] <= found[name][1]
    assert all(33 <= count <= 40 for count in hits.values()), hits


def test_the_error_of_the_auc_equals_a_bootstrap_that_counts_all_pairs():
    rng = np.random.default_rng(1)
    # Slates differ from one another, so that their rows are not independent.
    mood, luck = np.repeat(rng.normal(size=(2, 400)), 8, axis=1)
    score = 0.3 * rng.normal(size=3_200) + mood
    label = (rng.random(len(score)) < 1 / (1 + np.exp(1 - score - 3 * luck))).astype(np.float32)

    def width(slate):
        low, high = Contender.of(Slates(label, slate, slate), score, None).intervals()["auc"]
        assert (low + high) / 2 == pytest.approx(roc_auc_score(label, score))
        return high - low

    rows, anew = np.arange(len(score)).reshape(400, 8), []
    for _ in range(200):
        chosen = rows[rng.integers(0, 400, 400)].ravel()
        anew.append(roc_auc_score(label[chosen], score[chosen]))
    assert width(np.repeat(np.arange(400), 8)) == pytest.approx(2 * 1.96 * np.std(anew), rel=0.2)
    # Each row is its own slate, as if rows were independent: the interval is too narrow.
    assert width(np.arange(len(score))) < 0.8 * 2 * 1.96 * np.std(anew)


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


def test_a_score_is_calibrated_in_its_favour_whatever_its_scale():
    slates, chance = rows(3_000)
    logit = np.log(chance / (1 - chance))
    for score in (logit, np.exp(logit), 1e3 * logit, np.where(logit < -5, np.nan, logit)):
        loss = log_loss(slates.label, calibrated(slates.label, score))
        assert loss == pytest.approx(log_loss(slates.label, chance), abs=0.01)


def drawn(a: float, b: float, num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logit = rng.normal(1.0, 2.0, num_rows)
    return logit, (rng.random(num_rows) < 1 / (1 + np.exp(-(a * logit + b)))).astype(np.float32)


def viewers(num_rows: int) -> np.ndarray:
    return np.arange(num_rows) // 10


def test_a_map_that_helps_other_viewers_is_kept() -> None:
    logit, label = drawn(0.6, -1.0, num_rows=2_000)
    assert fit_if_better(logit, label, np.ones(2_000), viewers(2_000)) == fit_platt(logit, label)


@pytest.mark.parametrize("seed", range(3))
def test_no_map_is_kept_that_only_fits_its_own_rows(seed: int) -> None:
    """The few rows of one viewer differ from all others by more than a map can repair."""
    logit, label = drawn(1.0, 0.0, num_rows=400, seed=seed)
    group = np.where(np.arange(400) < 200, 0, 1)
    label[group == 0] = logit[group == 0] > -2.0
    label[group == 1] = logit[group == 1] > 4.0
    assert fit_if_better(logit, label, np.ones(400), group) == Calibration(1.0, 0.0)


def test_rows_without_both_labels_or_of_one_viewer_calibrate_nothing() -> None:
    logit, label = drawn(0.6, -1.0, num_rows=100)
    for group, labels in ((viewers(100), np.zeros(100)), (np.zeros(100), label)):
        assert fit_if_better(logit, labels, np.ones(100), group) == Calibration(1.0, 0.0)
    assert fit_if_better(*[np.empty(0)] * 4) == Calibration(1.0, 0.0)
