"""Test the guarantees of the statistics."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm, ttest_ind

from serve.features.experiment_metrics import metrics_of
from tests.support.experiment_log import SURFACE
from tests.support.simulated_viewers import ARMS, simulated_panel
from training.experiment.comparison import capped, comparisons
from training.experiment.confidence_sequence import always_valid, factor
from training.experiment.statistics import Effect, aggregates, compare, holm, solve

METRICS = metrics_of(SURFACE)
CLICKS = next(metric for metric in METRICS if metric.name == "click_per_viewer")


def test_the_interval_of_any_look_is_narrowest_at_best_at():
    wide = [factor(num, 7_000) for num in (100, 1_000, 7_000, 50_000, 1_000_000)]
    assert min(wide) == wide[2] == pytest.approx(3.035, abs=0.001)
    # Bonferroni's bound for twenty looks.
    assert 20 * 2 * norm.sf(wide[2]) < 0.05
    assert wide[2] < factor(21_000, 7_000) < 1.04 * wide[2]


def test_the_p_value_of_any_look_is_005_where_the_interval_touches_zero():
    for num in (500, 7_000, 90_000):
        se = 0.1
        wide = factor(num, 7_000) * se
        half = norm.isf(0.025) * se
        interval = wide - half, wide + half, None, None, 0.0
        effect = Effect(*interval, control=1.0, treatment=1.0 + wide, difference=wide, relative=None)
        look = always_valid(effect, num, 7_000)
        assert (look.low, look.p) == (pytest.approx(0.0, abs=1e-12), pytest.approx(0.05))


def test_holms_correction_is_that_of_the_paper():
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9}) == pytest.approx(
        {"b": 0.04, "c": 0.09, "a": 0.09, "d": 0.9}
    )
    assert holm({}) == {}


def test_aggregates_of_two_parts_add_up():
    rng = np.random.default_rng(0)
    parts = [{"click": rng.poisson(2.0, 50) * 1.0, "joins": rng.poisson(1.0, 50) * 1.0} for _ in range(2)]
    whole = aggregates({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    summed = aggregates(parts[0]) + aggregates(parts[1])
    assert summed.mean("click") == pytest.approx(whole.mean("click"))
    assert summed.cov("click", "joins") == pytest.approx(whole.cov("click", "joins"))


def test_a_difference_of_means_uses_welchs_test():
    rng = np.random.default_rng(2)
    control, treatment = rng.gamma(2.0, 1.0, 300), rng.gamma(3.0, 1.0, 100)
    effect = compare(CLICKS, *(aggregates({"click": arm}) for arm in (control, treatment)), adjusted=False)
    welch = ttest_ind(treatment, control, equal_var=False)
    assert effect.p == pytest.approx(welch.pvalue)
    assert (effect.low, effect.high) == pytest.approx(tuple(welch.confidence_interval()))


def test_viewers_needed_match_the_textbook_formula():
    rng = np.random.default_rng(0)
    both = aggregates({"click": rng.normal(10.0, 2.0, 100_000)})
    needed = solve("n_obs", CLICKS, both, ratio=1.0, adjusted=False, effect=0.02)
    per_arm = 2 * ((norm.isf(0.025) + norm.isf(0.2)) * 2.0 / 0.2) ** 2
    assert needed == pytest.approx(2 * per_arm, rel=0.02)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("smallest", [0.02, 0.5])
def test_power_is_that_of_the_deciding_interval(ended, smallest):
    people = simulated_panel(np.random.default_rng(0), 0.0)
    (clicks,) = comparisons(people, ARMS, [CLICKS], ratio=1.0, smallest_effect=smallest, ended=ended)
    best_at = 7 * int((people.first_day == 0).sum())
    asked = norm.isf(0.025) if ended else factor(len(people.arm), best_at)
    values = capped(people.totals(), people.rows(ARMS))[0]["click"]
    # Standard error of the relative effect.
    error = 2 * values.std() / values.mean() / np.sqrt(len(values))
    assert clicks["detectable"] == pytest.approx((asked + norm.isf(0.2)) * error, rel=0.01)
    assert clicks["power"] == pytest.approx(
        norm.sf(asked - smallest / error) + norm.sf(asked + smallest / error), abs=0.01
    )
    needed = clicks["viewers_needed"]
    asked = norm.isf(0.025) if ended else factor(needed, best_at)
    per_arm = 2 * ((asked + norm.isf(0.2)) * values.std() / values.mean() / smallest) ** 2
    assert needed == pytest.approx(2 * per_arm, rel=0.03)


def test_a_constant_metric_has_no_effect():
    same = aggregates({"click": np.ones(10)})
    assert compare(CLICKS, same, same, adjusted=False) is None


def test_an_arm_without_any_event_has_an_effect():
    rng = np.random.default_rng(0)
    before = rng.poisson(0.2, (2, 500)) * 1.0
    some, none = rng.poisson(0.1, 500) * 1.0, np.zeros(500)
    for adjusted in (False, True):
        control, treatment = (
            aggregates({"click": now, "click before": then})
            for now, then in zip((some, none), before, strict=True)
        )
        effect = compare(CLICKS, control, treatment, adjusted=adjusted)
        assert effect.high < 0
        assert effect.relative is None
    reverse = compare(CLICKS, treatment, control, adjusted=False)
    assert (reverse.low > 0, reverse.relative) == (True, None)


def test_both_scales_of_an_interval_exclude_zero_alike():
    rng = np.random.default_rng(1)
    control, treatment = (aggregates({"click": rng.poisson(rate, 4_000) * 1.0}) for rate in (2.0, 2.2))
    effect = compare(CLICKS, control, treatment, adjusted=False)
    valid = always_valid(effect, 8_000, 8_000)
    assert (valid.low > 0) == (valid.relative_low > 0)
    assert valid.high - valid.low == pytest.approx(2 * factor(8_000, 8_000) * effect.se)
