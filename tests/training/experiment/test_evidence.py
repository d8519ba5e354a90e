"""Hold verdicts to worlds that mislead: rare events, heavy viewers, and effects that fade.

Each world is looked at on each of 14 days, or at the declared end. CI makes few runs, and the proof
as many as its bands ask for; docs/experiments.md has its figures.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from serve.features.experiment_metrics import Metric
from tests.support.simulated_viewers import ARMS, LOOKS
from training.experiment import fading, guardrails
from training.experiment.comparison import capped, comparisons
from training.experiment.contrast import as_row, both_intervals, contrast
from training.experiment.panel import Panel
from training.experiment.verdict import by_limit, verdict

JOINS = Metric("join_per_viewer", "Join per viewer", "join per viewer", "join events", "join")
HIDES = Metric("hide_per_viewer", "Hide per viewer", "hide per viewer", "hide events", "join", bad=True)
SPEND = Metric("spend_per_viewer", "Spend per viewer", "€ per viewer", "values", "join", is_sum=True)
PROOF = (pytest.mark.integration, pytest.mark.no_ray, pytest.mark.proof)


def runs(few, many):
    return pytest.mark.parametrize("runs", [few, pytest.param(many, marks=PROOF)])


def allowed(share, runs):
    """Return the share with two standard errors of this many runs."""
    return share + 2 * math.sqrt(share * (1 - share) / runs)


def rows_by_look(seed, viewers, share, rate, up=1.0, metric=JOINS, looks=range(LOOKS)):
    """Yield a metric's row at looks: joined with this rate, which the treatment multiplies."""
    rng = np.random.default_rng(seed)
    treated, first = rng.random(viewers) < share, np.sort(rng.integers(0, LOOKS, viewers))
    joined = (rng.random(viewers) < rate * np.where(treated, up, 1.0)) * 1.0
    best_at = 7 * int((first == 0).sum())
    for day in looks:
        here = first <= day
        flags = dict(zip(ARMS, (here & ~treated, here & treated), strict=True))
        if min(int(mine.sum()) for mine in flags.values()) < 2:
            continue
        found = contrast(metric, {"join": joined}, flags, best_at)
        row = {
            "title": metric.title,
            "bad": metric.bad,
            "name": metric.name,
            "few": found.few,
            "effect": None,
        }
        yield row | {"raw": None, "control": 1.0} | (both_intervals(found) or {})


def verdicts(*world, **more):
    return [verdict(row, 1e-9, ended=False)[0] for row in rows_by_look(*world, **more)]


RARE = ((0.003, 6_400), (0.001, 20_000), (0.002, 40_000))
SMALL = (0.05, 0.02, 0.2)
EACH = [(*one, side) for one in RARE for small in SMALL for side in (small, 1 - small)]


@pytest.mark.parametrize(
    ("rate", "viewers", "share", "runs"),
    [(*one, 20) for one in (EACH[0], EACH[9])] + [pytest.param(*one, 400, marks=PROOF) for one in EACH],
)
def test_a_rare_event_decides_nothing_between_equal_arms(rate, viewers, share, runs):
    wrong = sum(set(verdicts(k, viewers, share, rate)) != {"no difference shown"} for k in range(runs))
    assert wrong / runs <= allowed(0.05, runs)


@runs(20, 400)
def test_a_treatment_that_loses_a_rare_event_has_not_won(runs):
    won = sum("won" in verdicts(k, 6_400, 0.95, 0.003, up=0.7) for k in range(runs))
    assert won / runs <= 0.025


def states(margin, *world, ended=False, **more):
    """Return what the looks say of a guardrail on hides, or what the last one says at the end."""
    looks = range(LOOKS)[-ended:]
    rows = rows_by_look(*world, metric=HIDES, looks=looks, **more)
    return [guardrails._of_metric(row, margin, ended)["state"] for row in rows]


@runs(20, 400)
@pytest.mark.parametrize("share", [0.05, 0.95])
def test_a_guardrail_of_a_rare_event_holds_only_where_it_is_true(runs, share):
    worse = sum("holds" in states(0.1, k, 6_400, share, 0.003, up=1.5) for k in range(runs))
    assert worse / runs <= 0.05
    most = min(runs, 200)
    true = sum(states(1.0, k, 200_000, share, 0.003, ended=True) == ["holds"] for k in range(most))
    assert true / most >= 0.8


@runs(40, 200)
@pytest.mark.parametrize("share", [0.05, 0.95])
def test_a_doubled_rare_event_is_decided(runs, share):
    last = range(LOOKS)[-1:]
    won = sum(verdicts(k, 200_000, share, 0.003, up=2.0, looks=last) == ["won"] for k in range(runs))
    assert won / runs >= 0.8


def heavy(seed, viewers=20_000):
    """Return a panel where 0.8 % of heavy viewers lose a quarter, and all others gain 8 %."""
    rng = np.random.default_rng(seed)
    treated, heavy = rng.random(viewers) < 0.5, rng.random(viewers) < 0.008
    spent = np.where(rng.random(viewers) < 0.5, rng.lognormal(1.5, 0.5, viewers), 0) * np.where(
        treated, 1.08, 1
    )
    most = rng.lognormal(6, 0.4, viewers) * np.where(treated, 0.75, 1)
    return of_sums(rng, treated, np.where(heavy, most, spent))


def pareto(seed, viewers=20_000):
    """Return a panel of sums without a variance, where the treatment adds a fifth to all."""
    rng = np.random.default_rng(seed)
    treated = rng.random(viewers) < 0.5
    return of_sums(rng, treated, (1 + rng.pareto(1.3, viewers)) * np.where(treated, 1.2, 1))


def of_sums(rng, treated, sums):
    num = len(sums)
    first = np.sort(rng.integers(0, LOOKS, num))
    names = np.array(ARMS)[treated.astype(int)]
    sums = {"join": sums, "exposures": np.ones(num), "active_days": np.ones(num)}
    return Panel(names, first, first == 0, np.arange(num), first, sums, {})


def row_of(people, metric=SPEND, *, ended):
    (row,) = comparisons(people, ARMS, [metric], ratio=1.0, smallest_effect=0.02, ended=ended)
    return row


@runs(12, 200)
@pytest.mark.parametrize("ended", [True, False])
def test_a_limit_on_sums_lets_no_worse_arm_win(runs, ended):
    limited = won = 0
    for k in range(runs):
        row = row_of(heavy(k), ended=ended)
        result, _ = verdict(row, 0.02, ended=ended)
        limited += result == "won"
        won += result == "won" and not by_limit(1, row, *ARMS)
        assert min(row["cut_share"].values()) > 0.3
    assert limited / runs > 0.7
    assert won / runs <= 0.05


@runs(12, 300)
def test_what_is_said_without_a_limit_covers_the_truth(runs):
    raws = [row_of(pareto(k), ended=True)["raw"]["effect"] for k in range(runs)]
    assert np.mean([one["relative_low"] <= 0.2 <= one["relative_high"] for one in raws]) >= 0.9


def visits(seed, effect, viewers=40_000, leave=0.0):
    """Return a panel of viewers who return, with an effect by the days since the first exposure.

    In the treatment, a share `leave` of the returns after two days is missing.
    """
    rng = np.random.default_rng(seed)
    first, eager = np.sort(rng.integers(0, LOOKS, viewers)), rng.gamma(2.0, 0.5, viewers)
    treated, days = rng.random(viewers) < 0.5, np.arange(LOOKS) - np.zeros((viewers, 1), int)
    since = days - first[:, None]
    back = 0.4 * (1 - leave * treated[:, None] * (since >= 2))
    viewer, day = np.nonzero((since == 0) | ((since > 0) & (rng.random(since.shape) < back)))
    late = since[viewer, day] >= 2
    exposures = 1.0 + rng.poisson(2 * eager[viewer])
    up = 1 + np.where(late, effect[1], effect[0]) * treated[viewer]
    joins = rng.poisson(exposures * eager[viewer] * 0.3 * up) * 1.0
    sums = {"join": joins, "exposures": exposures, "active_days": np.ones(len(viewer))}
    return Panel(np.array(ARMS)[treated.astype(int)], first, first == 0, viewer, day, sums, {})


def until(people, day):
    """Return the panel at the end of a day."""
    num, cells = int((people.first_day <= day).sum()), people.day <= day
    parts = people.arm[:num], people.first_day[:num], people.in_first_24h[:num]
    sums = {name: each[cells] for name, each in people.sums.items()}
    return Panel(*parts, people.viewer[cells], people.day[cells], sums, {})


def judged(people, *, ended=False):
    """Return the verdict before and after the look at how the effect lasts, and what was found."""
    row = as_seen(people)
    result, _ = verdict(row, 0.02, ended=ended)
    found = fading.by_period(people, ARMS, JOINS, row["effect"], ended=ended)
    lasts = not (result in SIGN and fading.against(SIGN[result], found, ended=ended))
    return result, result if lasts else "no difference shown", found


def as_seen(people):
    sums, _ = capped(people.totals(), people.rows(ARMS))
    flags = {arm: people.arm == arm for arm in ARMS}
    found = contrast(JOINS, sums, flags, 7 * int(people.in_first_24h.sum()))
    row = {"title": JOINS.title, "bad": False, "few": found.few, "raw": None}
    return row | {"effect": as_row(found.effect, found.valid.p), "always_valid": vars(found.valid)}


NOVELTY, CONSTANT, LATE = (0.12, -0.03), (0.06, 0.06), (0.0, 0.12)
SIGN = {"won": 1, "lost": -1}


@runs(4, 100)
def test_novelty_has_not_won_and_is_told(runs):
    at_looks = [[judged(until(visits(k, NOVELTY), day)) for day in range(6, LOOKS)] for k in range(runs)]
    assert np.mean([any(one == "won" for _, one, _ in looks) for looks in at_looks]) <= allowed(0.1, runs)
    assert np.mean([looks[-1][2]["fades"] for looks in at_looks]) >= 0.7


@runs(4, 100)
@pytest.mark.parametrize("effect", [CONSTANT, LATE])
@pytest.mark.parametrize("ended", [False, True])
def test_an_effect_that_stays_or_grows_does_not_fade_and_wins_as_often(runs, effect, ended):
    days = (13,) if ended else (6, 13)
    at_looks = [[judged(until(visits(k, effect), day), ended=ended) for day in days] for k in range(runs)]
    fades = np.mean([any(one["fades"] for *_, one in looks) for looks in at_looks])
    before, after = (np.mean([looks[-1][side] == "won" for looks in at_looks]) for side in (0, 1))
    assert fades <= allowed(0.05, runs)
    assert before - after <= 0.02
    assert after > 0.3


def test_an_arm_that_drives_viewers_off_does_not_look_good_by_those_who_stay():
    people = visits(0, CONSTANT, viewers=20_000, leave=0.3)
    *_, found = judged(people)
    later = {row["period"]: row["effect"]["relative"] for row in found["periods"]}["later days"]
    assert later < -0.1


def test_no_interval_rests_on_the_variance_of_one_arm_alone():
    rng = np.random.default_rng(0)
    sums = {"join": np.concatenate([rng.lognormal(size=500), np.zeros(500)])}
    flags = {"popular": np.arange(1_000) < 500, "model": np.arange(1_000) >= 500}
    found = contrast(SPEND, sums, flags, 7_000)
    assert found.effect is None
    assert found.few == {"viewers": {"popular": 500, "model": 0}, "needed": 30, "by_share": False}
    few = {"title": "Spend per viewer", "bad": False, "effect": None, "few": found.few}
    assert verdict(few, 0.02, ended=True) == (
        "no difference shown",
        "Spend per viewer: too few viewers differ from the usual amount (500 in 'popular' and 0 in 'model'): a "
        "comparison of means needs 30 in each arm, 30 more",
    )


count = partial(contrast, JOINS, best_at=7_000)


@pytest.mark.parametrize("usual", [0.0, 1.0])
def test_what_few_viewers_lack_is_no_more_certain_than_what_few_have(usual):
    """Where all but a few viewers have one event, those few decide nothing."""
    values = np.full(2_000, usual)
    values[1_000:1_004] = 1 - usual
    flags = {"popular": np.arange(2_000) < 1_000, "model": np.arange(2_000) >= 1_000}
    found = count(sums={"join": values}, flags=flags)
    assert found.effect is None if usual else found.valid.low < 0 < found.valid.high
