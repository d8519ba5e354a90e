"""Validate the statistics with the report's own functions on simulated viewers.

Each check has a band of two standard errors around the promised share, which is wider with fewer
runs; the band of 50 runs around 5 % has no lower bound. The long proofs make 300 runs.
docs/experiments.md has the figures of 1,000.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
from scipy.stats import norm

from serve.config.settings import Experiment
from serve.features.experiment_metrics import EXPOSURES, metrics_of
from tests.support.experiment_log import SURFACE
from tests.support.simulated_viewers import (
    ARMS,
    EXPECTED,
    LISTENERS,
    LOOKS,
    MEAN_EXPOSURES,
    VIEWERS,
    heavy_minutes,
    simulated_arms,
    simulated_panel,
)
from training.experiment.comparison import capped, daily
from training.experiment.guardrails import of_metrics
from training.experiment.statistics import MIN_VIEWERS, aggregates, compare, holm, sample_ratio
from training.experiment.verdict import SRM_P, by_denominator, verdict

METRICS = metrics_of(SURFACE)
BY_NAME = {metric.name: metric for metric in METRICS}
CLICKS, JOIN_RATE, MINUTES = (
    BY_NAME[name] for name in ("click_per_viewer", "join_per_exposure", "stay_per_viewer")
)
UPLIFT = 0.1
FEW, MANY = 50, 300
proof = (pytest.mark.integration, pytest.mark.no_ray, pytest.mark.proof)
RUNS = pytest.mark.parametrize("runs", [FEW, pytest.param(MANY, marks=proof)])
PROOF = pytest.mark.parametrize("runs", [pytest.param(MANY, marks=proof)])


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


@PROOF
def test_daily_looks_at_new_viewers_are_valid_for_the_interval_of_any_look_alone(runs):
    rng, fixed, always = np.random.default_rng(1), 0, 0
    for _ in range(runs):
        (looks,) = daily(simulated_panel(rng, 0.0), ARMS, [CLICKS])
        fixed += any(map(excludes_zero, looks))
        always += any(excludes_zero(look["always_valid"]) for look in looks)
    assert always / runs <= 0.05
    assert fixed / runs >= 0.15


@PROOF
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
    rows = {metric.name: rows_on(metric, curve, day) for metric, curve in zip(METRICS, curves, strict=True)}
    return judged(rows, JOIN_RATE.name, ended=False) != "no difference shown"


def rows_on(metric, curve, day):
    """Return a metric's row in the report of a day."""
    look = next((look for look in curve if look["day"] == day), None)
    return {"title": metric.title, "bad": metric.bad, "effect": look} | (look or {})


def judged(rows, primary, *, ended):
    """Return the verdict; by the join rate with exposures, it is not by the denominator."""
    result, _ = verdict(rows[primary], 1e-9, ended=ended)
    is_ratio = primary == JOIN_RATE.name and EXPOSURES.name in rows
    sign = {"won": 1, "lost": -1}.get(result)
    if is_ratio and sign and by_denominator(sign, rows["join_per_viewer"], rows[EXPOSURES.name], ended=ended):
        return "no difference shown"
    return result


def shown_at_a_look(runs, draw, metrics, days=range(Experiment.min_days - 1, LOOKS)):
    """Return the shares of runs that won or lost by the first metric in a report of these days."""
    rng, found = np.random.default_rng(1), Counter()
    for _ in range(runs):
        people = draw(rng)
        curves = daily(people, ARMS, metrics)
        verdicts = {
            judged(
                {one.name: rows_on(one, curve, day) for one, curve in zip(metrics, curves, strict=True)},
                metrics[0].name,
                ended=False,
            )
            for day in days
            if min((people.first_day[people.arm == arm] <= day).sum() for arm in ARMS) >= MIN_VIEWERS
        }
        found.update(verdicts - {"no difference shown"})
    return {name: found[name] / runs for name in ("won", "lost")}


def shown_at_the_end(runs, draw):
    """Return the shares of runs with each verdict on the join rate, by itself and in a report."""
    rng, alone, checked = np.random.default_rng(1), Counter(), Counter()
    for _ in range(runs):
        people = draw(rng)
        totals, _ = capped(people.totals(), people.rows(ARMS))
        arms = [aggregates(totals, people.arm == arm) for arm in ARMS]
        rows = {
            metric.name: {
                "title": metric.title,
                "bad": metric.bad,
                "effect": asdict(compare(metric, *arms, adjusted=False)),
            }
            for metric in RATIO
        }
        alone.update([verdict(rows[JOIN_RATE.name], 1e-9, ended=True)[0]])
        checked.update([judged(rows, JOIN_RATE.name, ended=True)])
    return [{name: found[name] / runs for name in ("won", "lost")} for found in (alone, checked)]


# Viewers of both arms, and the share of the treatment, of which the small arm has 500.
SPLITS = {"50/50": {"viewers": VIEWERS, "share": 0.5}, "95/5": {"viewers": 10_000, "share": 0.05}}
EACH_SPLIT = pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
# Standard deviations of the logarithm: of what a viewer spends, and of minutes with a heavy tail.
SPEND, HEAVY = 1.0, 2.0


@PROOF
@EACH_SPLIT
@pytest.mark.parametrize(
    ("metric", "sd"), [(CLICKS, None), (MINUTES, None), (MINUTES, SPEND), (MINUTES, HEAVY)]
)
def test_looks_at_counts_and_amounts_show_no_effect_where_there_is_none(runs, split, metric, sd):
    """Without limits and a minimum of viewers, 23 % of the runs at 95/5 and HEAVY had lost."""
    draw = partial(simulated_panel, back=0.0, sd=sd, **split)
    assert sum(shown_at_a_look(runs, draw, [metric]).values()) <= 0.064


@RUNS
@EACH_SPLIT
@pytest.mark.parametrize("sd", [SPEND, HEAVY])
@pytest.mark.parametrize("uplift", [0.0, 0.2])
def test_an_interval_covers_the_effect_on_amounts_up_to_the_limit(runs, split, sd, uplift):
    """The true effect is that on the mean of what counts: min(minutes, limit)."""
    rng, covered = np.random.default_rng(1), 0
    num = split["viewers"]
    for _ in range(runs):
        amount, treated = heavy_minutes(rng, sd, num), np.arange(num) < num * split["share"]
        most, limits = capped({"stay": amount * (1 + uplift * treated)}, slice(None))
        effect = compare(MINUTES, *(aggregates(most, flags) for flags in (~treated, treated)), adjusted=False)
        at = limits["stay"]["at"]
        true = (1 + uplift) * expected_up_to(at / (1 + uplift), sd) - expected_up_to(at, sd)
        covered += effect.low <= true <= effect.high
    assert covered / runs >= 0.93 - 0.014 * math.sqrt(1_000 / runs) * (runs < 1_000)


@RUNS
@EACH_SPLIT
def test_an_interval_covers_the_effect_on_counts_at_any_split(runs, split):
    rng, covered = np.random.default_rng(1), 0
    for _ in range(runs):
        people = simulated_panel(rng, 0.0, uplift=(UPLIFT,), mean=MEAN_EXPOSURES, **split)
        control, treatment = (aggregates(people.totals(), people.arm == arm) for arm in ARMS)
        effect = compare(CLICKS, control, treatment, adjusted=False)
        covered += effect.relative_low <= UPLIFT <= effect.relative_high
    assert covered / runs >= 0.93 - 0.014 * math.sqrt(1_000 / runs) * (runs < 1_000)


def expected_up_to(limit, sd):
    """Return the mean of min(amount, limit) at a standard deviation of its logarithm."""
    below = math.exp(sd**2 / 2) * norm.cdf(math.log(limit) / sd - sd)
    return LISTENERS * (below + limit * norm.sf(math.log(limit) / sd))


HIDES, SPENT = replace(CLICKS, bad=True), MINUTES


def holds(runs, draw, metric, margin):
    """Return the shares of runs in which a guardrail holds.

    That is at any look, at the last one, and at the declared end.
    """
    rng, found = np.random.default_rng(1), Counter()
    declaration = Experiment("x", "x", (), guardrails={metric.name: margin})
    for _ in range(runs):
        people = draw(rng)
        (curve,) = daily(people, ARMS, [metric])
        states = []
        for day in range(Experiment.min_days - 1, LOOKS):
            if min((people.first_day[people.arm == arm] <= day).sum() for arm in ARMS) >= MIN_VIEWERS:
                row = rows_on(metric, curve, day)
                states.append(state(metric, row, people, declaration, ended=False))
        at_the_end = state(metric, row, people, declaration, ended=True) == "holds"
        found.update({"any": "holds" in states, "last": states[-1] == "holds", "end": at_the_end})
    return {name: found[name] / runs for name in ("any", "last", "end")}


def state(metric, row, people, declaration, *, ended):
    """Return what the report of a day says of a guardrail."""
    (one,) = of_metrics({metric.name: row}, [metric], declaration, people, ARMS, ended=ended)
    return one["state"]


def guarded(metric, split):
    """Return draws of a panel without an effect, and of one that is worse by a quarter or more.

    With so wide a margin, most experiments of the split can show that nothing changed.
    """
    draw = partial(simulated_panel, back=0.0, mean=MEAN_EXPOSURES, **SPLITS[split])
    size = {"50/50": 0.25, "95/5": 0.4}[split]
    # Fewer minutes, and more of what is bad.
    return draw, partial(draw, uplift=(size if metric.bad else -size,))


def true_effect(draw, metric):
    """Return the relative effect on the mean of what counts, from very many viewers."""
    people = draw(np.random.default_rng(2), viewers=1_000_000)
    most, _ = capped(people.totals(), people.rows(ARMS))
    control, treatment = (most[metric.above][people.arm == arm].mean() for arm in ARMS)
    return treatment / control - 1


@PROOF
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("metric", [HIDES, SPENT], ids=["hides", "minutes"])
def test_a_guardrail_that_is_worse_by_its_margin_holds_at_few_looks_and_one_unchanged_at_most(
    runs, split, metric
):
    draw, worse = guarded(metric, split)
    margin = abs(true_effect(worse, metric))
    worsened = holds(runs, worse, metric, margin)
    assert max(worsened["any"], worsened["end"]) <= 0.05
    unchanged = holds(runs, draw, metric, margin)
    assert min(unchanged["last"], unchanged["end"]) >= 0.8


RATIO = [JOIN_RATE, BY_NAME["join_per_viewer"], EXPOSURES]
some = partial(simulated_panel, back=0.0, mean=MEAN_EXPOSURES)


@RUNS
def test_more_exposures_at_equal_joins_have_not_lost(runs):
    alone, checked = shown_at_the_end(runs, partial(some, more=0.08))
    assert alone["lost"] > 0.3
    assert checked["lost"] <= 0.064


@PROOF
def test_more_exposures_at_equal_joins_have_not_lost_at_any_look(runs):
    assert shown_at_a_look(runs, partial(some, more=0.08), RATIO)["lost"] <= 0.064


@RUNS
def test_a_better_rate_at_equal_exposures_is_found_as_often_as_by_the_ratio_alone(runs):
    alone, checked = shown_at_the_end(runs, partial(some, uplift=(0.05,), viewers=2 * VIEWERS))
    assert alone["won"] > 0.2
    assert checked["won"] >= alone["won"] - 0.02


@PROOF
def test_busy_weekends_show_no_effect_where_there_is_none(runs):
    week = partial(simulated_panel, back=0.2, busy=(2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    assert sum(shown_at_a_look(runs, week, RATIO).values()) <= 0.064


@PROOF
def test_an_effect_of_the_weekend_needs_a_week_to_even_out(runs):
    """An effect of +40 % on two days and -16 % on five is none over a week: hence `min_days: 7`."""
    week = partial(some, uplift=(0.4, 0.4, *[-0.16] * 5), viewers=2 * VIEWERS)
    assert sum(shown_at_a_look(runs, week, RATIO, [1]).values()) > 0.2
    assert sum(shown_at_a_look(runs, week, RATIO, [6]).values()) <= 0.05


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
                arms.append(aggregates({"click": 10 + now, "click before": 10 + before}))
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
    # Of 6,000 runs, 88.0 % were flagged.
    assert uneven >= 0.85
