"""Validate the statistics with the report's own functions on simulated viewers.

Each check has a band of two standard errors around the promised share, which is wider with fewer
runs; the band of 50 runs around 5 % has no lower bound. The long proofs make 300 runs.
docs/experiments.md has the figures of 1,000.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from serve.contract.experiment_metrics import METRICS
from tests.support.simulated_viewers import ARMS, EXPECTED, LOOKS, VIEWERS, simulated_arms, simulated_panel
from training.experiment.comparison import daily
from training.experiment.statistics import aggregates, compare, holm, sample_ratio
from training.experiment.verdict import SRM_P, verdict

BY_NAME = {metric.name: metric for metric in METRICS}
CLICKS, JOIN_RATE = BY_NAME["clicks"], BY_NAME["join_rate"]
UPLIFT = 0.1
FEW, MANY = 50, 300
proof = (pytest.mark.integration, pytest.mark.no_ray, pytest.mark.proof)
RUNS = pytest.mark.parametrize("runs", [FEW, pytest.param(MANY, marks=proof)])


def around(share, runs):
    return pytest.approx(share, abs=0.014 * math.sqrt(1_000 / runs))


def excludes_zero(interval):
    return not interval["low"] <= 0.0 <= interval["high"]


@RUNS
def test_a_test_of_equal_arms_is_wrong_in_one_of_twenty(runs):
    rng, wrong = np.random.default_rng(1), Counter()
    for _ in range(runs):
        arms = simulated_arms(rng, 0.0)
        wrong.update(
            metric.name for metric in (CLICKS, JOIN_RATE) if compare(metric, *arms, adjusted=False).p < 0.05
        )
    for metric in (CLICKS, JOIN_RATE):
        assert wrong[metric.name] / runs == around(0.05, runs)


@RUNS
def test_an_interval_covers_a_true_effect_in_19_of_20(runs):
    rng, covered = np.random.default_rng(1), Counter()
    for _ in range(runs):
        arms = simulated_arms(rng, UPLIFT)
        for metric in (CLICKS, JOIN_RATE):
            effect = compare(metric, *arms, adjusted=False)
            covered[metric.name] += effect.low <= EXPECTED[metric.name] * UPLIFT <= effect.high
            covered[f"{metric.name}, relative"] += effect.relative_low <= UPLIFT <= effect.relative_high
    assert len(covered) == 4
    for num in covered.values():
        assert num / runs == around(0.95, runs)


@pytest.mark.parametrize("runs", [pytest.param(MANY, marks=proof)])
def test_daily_looks_at_new_viewers_are_valid_for_the_interval_of_any_look_alone(runs):
    rng, fixed, always = np.random.default_rng(1), 0, 0
    for _ in range(runs):
        (looks,) = daily(simulated_panel(rng, 0.0), ARMS, [CLICKS])
        fixed += any(map(excludes_zero, looks))
        always += any(excludes_zero(look["always_valid"]) for look in looks)
    assert always / runs <= 0.05
    assert fixed / runs >= 0.15


@pytest.mark.parametrize("runs", [pytest.param(MANY, marks=proof)])
def test_daily_looks_at_all_metrics_of_returning_viewers_are_valid(runs):
    rng, always, wrong = np.random.default_rng(1), 0, 0
    for _ in range(runs):
        curves = daily(simulated_panel(rng, 0.4), ARMS, METRICS)
        always += any(excludes_zero(look["always_valid"]) for look in curves[METRICS.index(CLICKS)])
        wrong += any(shows_an_effect(curves, day) for day in range(LOOKS))
    assert always / runs <= 0.05
    assert wrong / runs <= 0.064


def shows_an_effect(curves, day):
    """Return whether the report of a day before the declared end shows an effect.

    `curves` has the looks of each metric. An effect is a verdict by the join rate, or a p-value
    below 5 % after Holm's correction for all metrics.
    """
    pairs = zip(METRICS, curves, strict=True)
    looks = {metric.name: look for metric, curve in pairs for look in curve if look["day"] == day}
    if any(p < 0.05 for p in holm({name: look["p"] for name, look in looks.items()}).values()):
        return True
    look = looks.get(JOIN_RATE.name)
    row = {"title": JOIN_RATE.title, "effect": look, "always_valid": look and look["always_valid"]}
    return verdict(row, 1e-9, ended=False)[0] != "no difference shown"


def test_the_validation_sees_an_effect_that_the_report_would_show():
    """Fixed-horizon p-values, as any look had before, would be counted."""
    curves = daily(simulated_panel(np.random.default_rng(1), 0.4), ARMS, METRICS)
    assert not shows_an_effect(curves, 13)
    for look in curves[METRICS.index(CLICKS)]:
        look["p"] = 0.005
    assert shows_an_effect(curves, 13)


@RUNS
def test_cuped_removes_the_variance_that_the_period_before_explains(runs):
    rng = np.random.default_rng(1)
    for correlation in (0.5, math.sqrt(0.75)):
        plain, adjusted = np.zeros((2, runs)), np.zeros((2, runs))
        for i in range(runs):
            arms = []
            for _ in range(2):
                before, noise = rng.normal(size=(2, VIEWERS // 2))
                now = correlation * before + math.sqrt(1 - correlation**2) * noise
                arms.append(aggregates({"clicks": 10 + now, "clicks_before": 10 + before}))
            for to, is_adjusted in ((plain, False), (adjusted, True)):
                effect = compare(CLICKS, *arms, adjusted=is_adjusted)
                to[:, i] = effect.se, effect.difference
        expected = correlation**2
        assert 1 - np.mean((adjusted[0] / plain[0]) ** 2) == pytest.approx(expected, rel=0.05)
    # At the higher correlation, the effects over runs scatter less too.
    scatter = 1 - adjusted[1].var() / plain[1].var()
    assert scatter == pytest.approx(expected, rel=0.05 * math.sqrt(1_000 / runs))


def test_the_sample_ratio_test_flags_uneven_splits_alone():
    rng, num, runs = np.random.default_rng(1), 200_000, 300
    even, uneven = (
        np.mean([sample_ratio(n, num - n, 1.0) < SRM_P for n in rng.binomial(num, share, runs).tolist()])
        for share in (0.5, 0.505)
    )
    assert even <= 0.005
    # 89.1 % of 1,000 runs were flagged.
    assert uneven >= 0.85
