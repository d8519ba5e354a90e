from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from serve.contract.errors import TabrankError
from training.network.calibrate import MIN_SLOPE, fit_platt


def drawn(a: float, b: float, num_rows: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logit = rng.normal(1.0, 2.0, num_rows)
    return logit, rng.random(num_rows) < 1 / (1 + np.exp(-(a * logit + b)))


def loss(a: float, b: float, logit: np.ndarray, label: np.ndarray) -> float:
    positive = int(label.sum())
    target = np.where(label > 0.5, (positive + 1) / (positive + 2), 1 / (len(label) - positive + 2))
    z = a * logit + b
    return float(np.sum(np.logaddexp(0, z) - target * z))


def test_the_map_that_drew_the_labels_is_found() -> None:
    calibration = fit_platt(*drawn(0.6, -2.0))
    assert calibration.a == pytest.approx(0.6, abs=0.03)
    assert calibration.b == pytest.approx(-2.0, abs=0.05)


def test_the_chance_of_a_candidate_that_is_looked_at_is_found_from_labels_as_shown() -> None:
    logit, label = drawn(0.6, -0.5, num_rows=50_000)
    rng = np.random.default_rng(1)
    examination = rng.choice([1.0, 0.5, 0.1], len(logit))
    calibration = fit_platt(logit, label & (rng.random(len(logit)) < examination), examination)
    assert calibration.a == pytest.approx(0.6, abs=0.03)
    assert calibration.b == pytest.approx(-0.5, abs=0.05)


def test_the_map_that_drew_shares_is_found_as_from_events_of_these_chances() -> None:
    logit, event = drawn(0.6, -1.0, num_rows=50_000)
    share = 1 / (1 + np.exp(-(0.6 * logit - 1.0)))
    theta = np.where(np.arange(50_000) % 2, 1.0, 0.4)
    for label, examination in ((share, 1.0), (share * theta, theta), (event, 1.0)):
        calibration = fit_platt(logit, label, examination)
        assert calibration.a == pytest.approx(0.6, abs=0.03)
        assert calibration.b == pytest.approx(-1.0, abs=0.05)


@pytest.mark.parametrize("num_rows", [3, 30, 1_000])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_no_other_map_has_less_loss(num_rows: int, scale: float) -> None:
    logit, label = drawn(0.6, -1.0, num_rows, seed=num_rows)
    label[:2] = [True, False]
    logit[:2] = [2.0, 0.0]
    found = fit_platt(logit.astype(np.float32) * scale, label.astype(np.float32))
    best = minimize(lambda x: loss(x[0], x[1], logit, label), [1.0, 0.0], method="Nelder-Mead").fun
    assert loss(found.a * scale, found.b, logit, label) <= best + 1e-4


def test_separable_and_one_sided_rows_stay_finite() -> None:
    logit = np.linspace(-5, 5, 100)
    for label in (logit > 0, np.ones(100), np.zeros(100)):
        calibration = fit_platt(logit, label)
        p = 1 / (1 + np.exp(-(calibration.a * logit + calibration.b)))
        assert 0 < p.min() <= p.max() < 1
        assert p.mean() == pytest.approx(label.mean(), abs=0.02)


def test_inverse_logits_keep_their_order_and_lose_their_spread() -> None:
    logit, label = drawn(-1.0, 0.0)
    calibration = fit_platt(logit, label)
    assert calibration.a == pytest.approx(MIN_SLOPE)
    assert 1 / (1 + np.exp(-calibration.b)) == pytest.approx(label.mean(), abs=0.01)


def test_equal_logits_get_the_base_rate() -> None:
    label = np.arange(100) < 20
    calibration = fit_platt(np.full(100, 3.0), label)
    assert 1 / (1 + np.exp(-(calibration.a * 3.0 + calibration.b))) == pytest.approx(0.2, abs=0.01)


def test_logits_that_are_not_finite_and_no_rows_are_refused() -> None:
    for logit in ([np.nan, 1.0], []):
        with pytest.raises(TabrankError, match="and all finite"):
            fit_platt(np.array(logit), np.zeros(len(logit)))
