"""Validation of the statistics: the report's own functions on simulated viewers.

Each check has a band of two standard errors around the promised share (1.4 points at 1,000 runs),
wider with fewer runs. Letter: V viewers.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from tea_tasting.aggr import Aggregates

from training.experiment.comparison import daily
from training.experiment.metrics import METRICS, Metric
from training.experiment.panel import BEFORE, F64, SUMS, Panel
from training.experiment.statistics import ALPHA, Effect, aggregates, compare, holm, sample_ratio
from training.experiment.verdict import SRM_P, verdict

# Viewers of both arms in a run.
VIEWERS = 4_000
# Days with a look, with equally many new viewers on each.
LOOKS = 14
# Share of the control and number of viewers of the sample ratio check.
SPLIT, MANY = 0.505, 200_000
# Relative effect on the rates of click and join.
UPLIFT = 0.1
BY_NAME = {metric.name: metric for metric in METRICS}
COMPARED = DIFFERENCE, RATIO = BY_NAME["clicks"], BY_NAME["join_rate"]


def validate(
    runs: int = 1_000, *, seed: int = 0, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Run all checks; return the measurement and band of each, and whether all are `held`."""
    started = time.monotonic()
    rng = default_rng(seed)
    lines: list[dict[str, Any]] = []
    for check in (same_arms, daily_looks, coverage, adjustment, mismatch):
        for line in check(rng, runs):
            lines.append(line)
            progress(_format(line))
    return {
        "runs": runs,
        "seed": seed,
        "viewers": VIEWERS,
        "seconds": round(time.monotonic() - started, 1),
        "checks": lines,
        "held": all(line["held"] for line in lines),
    }


def same_arms(rng: Generator, runs: int) -> Iterator[dict[str, Any]]:
    """Measure the false positives of the fixed-horizon test in A/A experiments."""
    wrong: Counter[str] = Counter()
    for _ in range(runs):
        arms = simulated_arms(rng, 0.0)
        wrong.update(metric.title for metric in COMPARED if compared(metric, *arms).p < 0.05)
    for metric in COMPARED:
        yield _line(f"A/A: false positives, {metric.title}", wrong[metric.title] / runs, *_around(0.05, runs))


def daily_looks(rng: Generator, runs: int) -> Iterator[dict[str, Any]]:
    """Measure the false positives of daily looks in A/A experiments.

    Once with new viewers on each day, as the theorem assumes, and once with returning viewers and
    all metrics.
    """
    for back, who in ((0.0, "new viewers each day"), (0.4, "viewers who return")):
        fixed = always = wrong = 0
        for _ in range(runs):
            curves = daily(simulated_panel(rng, back), (0, 1), METRICS if back else [DIFFERENCE])
            looks = curves[METRICS.index(DIFFERENCE) if back else 0]
            valid = [look["always_valid"] for look in looks]
            fixed += any(map(_excludes_zero, looks))
            always += any(map(_excludes_zero, valid))
            wrong += bool(back) and any(decides(curves, day) for day in range(LOOKS))
        yield _line(f"{LOOKS} daily looks, {who}: false positives, any look", always / runs, 0.0, 0.05)
        if not back:
            name = f"{LOOKS} daily looks, {who}: false positives, fixed horizon"
            yield _line(name, fixed / runs, 0.15, 1.0)
        else:
            name = f"{LOOKS} daily looks, {len(METRICS)} metrics: won, lost or p (Holm) < 0.05 at any look"
            yield _line(name, wrong / runs, 0.0, 0.064)


def decides(curves: Sequence[Sequence[dict[str, Any]]], day: int) -> bool:
    """Return True if the report of a day before the declared end shows an effect.

    `curves` has the looks of each metric. An effect is a verdict by the join rate, or a p-value
    below 5 % after Holm's correction for all metrics.
    """
    pairs = zip(METRICS, curves, strict=True)
    looks = {m.name: look for m, curve in pairs for look in curve if look["day"] == day}
    if any(p < ALPHA for p in holm({name: look["p"] for name, look in looks.items()}).values()):
        return True
    look = looks.get(RATIO.name)
    row = {"title": RATIO.title, "effect": look, "always_valid": look and look["always_valid"]}
    return verdict(row, 1e-9, ended=False)[0] != "no difference shown"


def _excludes_zero(interval: Mapping[str, Any]) -> bool:
    return not interval["low"] <= 0.0 <= interval["high"]


def coverage(rng: Generator, runs: int) -> Iterator[dict[str, Any]]:
    """Measure how often 95 % intervals cover a true effect of 10 %."""
    covered: Counter[str] = Counter()
    for _ in range(runs):
        arms = simulated_arms(rng, UPLIFT)
        for metric in COMPARED:
            effect = compared(metric, *arms)
            assert effect.relative_low is not None
            assert effect.relative_high is not None
            covered[metric.title] += effect.low <= truth(metric) * UPLIFT <= effect.high
            covered[f"{metric.title}, relative"] += effect.relative_low <= UPLIFT <= effect.relative_high
    for name, num in covered.items():
        yield _line(f"coverage of a true effect of 10 %, {name}", num / runs, *_around(0.95, runs))


def adjustment(rng: Generator, runs: int) -> Iterator[dict[str, Any]]:
    """Measure the variance that CUPED removes at a known correlation with the pre-period.

    Measured by the standard errors, and by the scatter of the effects over runs.
    """
    for correlation in (0.5, math.sqrt(0.75)):
        plain, adjusted = np.zeros((2, runs)), np.zeros((2, runs))
        for i in range(runs):
            arms = []
            for _ in range(2):
                before, noise = rng.normal(size=(2, VIEWERS // 2))
                now = correlation * before + math.sqrt(1 - correlation**2) * noise
                arms.append(aggregates({"clicks": 10 + now, "clicks" + BEFORE: 10 + before}))
            for to, is_adjusted in ((plain, False), (adjusted, True)):
                effect = compared(DIFFERENCE, *arms, adjusted=is_adjusted)
                to[:, i] = effect.se, effect.difference
        expected = correlation**2
        cut = 1 - float(np.mean((adjusted[0] / plain[0]) ** 2))
        yield _line(f"CUPED at ρ² = {expected:.2f}: variance removed", cut, 0.95 * expected, 1.05 * expected)
        # At a lower correlation the scatter over 1,000 runs exceeds the band.
        if expected > 0.5:
            scatter = 1 - float(adjusted[1].var() / plain[1].var())
            band = 0.05 * expected * math.sqrt(1_000 / min(runs, 1_000))
            name = f"CUPED at ρ² = {expected:.2f}: variance removed, of the effects over runs"
            yield _line(name, scatter, expected - band, expected + band)


def mismatch(rng: Generator, runs: int) -> Iterator[dict[str, Any]]:
    """Measure how often the sample ratio test flags even and uneven splits."""
    even, uneven = (
        float(np.mean([sample_ratio(num, MANY - num, 1.0) < SRM_P for num in controls]))
        for controls in (rng.binomial(MANY, share, runs).tolist() for share in (0.5, SPLIT))
    )
    yield _line("sample ratio: even splits flagged", even, 0.0, 0.005)
    yield _line(f"sample ratio: {SPLIT:.1%} of {MANY:,} viewers caught", uneven, 0.85, 1.0)


def simulated_arms(rng: Generator, uplift: float) -> tuple[Aggregates, Aggregates]:
    """Return a control and a treatment with `uplift`."""
    num = VIEWERS // 2
    return aggregates(viewers(rng, num, 0.0)), aggregates(viewers(rng, num, uplift))


# Mean exposures beyond the first one, and shape of the gamma distribution of eagerness.
MEAN_EXPOSURES, EAGERNESS = 5.0, 2.0
CLICK_RATE, JOIN_RATE = 0.3, 0.1


def viewers(rng: Generator, num: int, uplift: float) -> dict[str, F64]:
    """Return simulated sums [V]. Eager viewers have more exposures, and more events on each.

    Numerator and denominator of ratios are therefore correlated.
    """
    eager = rng.gamma(EAGERNESS, 1 / EAGERNESS, num)
    exposures = 1.0 + rng.poisson(MEAN_EXPOSURES * eager).astype(np.float64)
    clicks, joins = (
        rng.poisson(exposures * eager * rate * (1 + uplift)).astype(np.float64)
        for rate in (CLICK_RATE, JOIN_RATE)
    )
    return {"exposures": exposures, "clicks": clicks, "joins": joins}


def simulated_panel(rng: Generator, back: float) -> Panel:
    """Return a panel of viewers who arrive evenly over the days, in two arms without a difference.

    Each viewer returns on each later day with probability `back`.
    """
    first = np.sort(rng.integers(0, LOOKS, VIEWERS))
    eager = rng.gamma(EAGERNESS, 1 / EAGERNESS, VIEWERS)
    days = np.arange(LOOKS)
    here = (days == first[:, None]) | ((days > first[:, None]) & (rng.random((VIEWERS, LOOKS)) < back))
    viewer, day = np.nonzero(here)
    exposures = 1.0 + rng.poisson(eager[viewer]).astype(np.float64)
    clicks, joins = (
        rng.poisson(exposures * eager[viewer] * rate).astype(np.float64) for rate in (CLICK_RATE, JOIN_RATE)
    )
    arm, active_days = rng.integers(0, 2, VIEWERS), np.ones(len(viewer))
    sums = dict(zip(SUMS, (exposures, active_days, clicks, joins, rng.gamma(joins)), strict=True))
    return Panel(arm, first, first == 0, viewer, day, sums, {})


def truth(metric: Metric) -> float:
    """Return the expected metric of `viewers`: E[eager · exposures] = 1 + m · (1 + 1 / shape)."""
    eager_exposures = 1 + MEAN_EXPOSURES * (1 + 1 / EAGERNESS)
    if metric is DIFFERENCE:
        return CLICK_RATE * eager_exposures
    return JOIN_RATE * eager_exposures / (1 + MEAN_EXPOSURES)


def compared(metric: Metric, control: Aggregates, treatment: Aggregates, *, adjusted: bool = False) -> Effect:
    """Compare two arms as the report does."""
    effect = compare(metric, control, treatment, adjusted=adjusted)
    assert effect is not None
    return effect


def table(result: dict[str, Any]) -> str:
    """Format the checks as text."""
    lines = [_format(line) for line in result["checks"]]
    end = "held" if result["held"] else "NOT held"
    return "\n".join([*lines, f"{end}: {result['runs']} runs a check, {result['seconds']} s"])


def _format(line: dict[str, Any]) -> str:
    held = "held" if line["held"] else "NOT held"
    return f"{line['check']}: {line['measured']:.2%} of {line['low']:.2%} to {line['high']:.2%}, {held}"


def _around(share: float, runs: int) -> tuple[float, float]:
    band = 0.014 * math.sqrt(1_000 / runs)
    return share - band, share + band


def _line(check: str, measured: float, low: float, high: float) -> dict[str, Any]:
    return {"check": check, "measured": measured, "low": low, "high": high, "held": low <= measured <= high}
