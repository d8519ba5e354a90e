"""Whether the statistics keep what they promise: the report's own functions on simulated viewers.

Each check has a band. Shares over runs are allowed two standard errors around what is promised (1.4 points at 1,000
runs), more where there are fewer runs. Letters: V viewers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from tea_tasting.aggr import Aggregates

from training.experiment.comparison import daily
from training.experiment.metrics import METRICS, Metric
from training.experiment.panel import BEFORE, Panel
from training.experiment.served_log import F64
from training.experiment.statistics import Effect, aggregates, compare, sample_ratio
from training.experiment.verdict import SRM_P

VIEWERS = 4_000  # of both arms in a run
LOOKS = 14  # days, as many viewers new on each
SPLIT, MANY = (0.505, 0.495), 200_000
UPLIFT = 0.1  # relative, on the rates of click and join
BY_NAME = {metric.name: metric for metric in METRICS}
DIFFERENCE, RATIO = BY_NAME["clicks"], BY_NAME["join_rate"]


def validate(
    runs: int = 1_000, *, seed: int = 0, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Each check as a line with what was measured and its band; `held` where all are within."""
    started = time.monotonic()
    rng = default_rng(seed)
    lines: list[dict[str, Any]] = []
    for check in (same_arms, daily_looks, coverage, adjustment, mismatch):
        for line in check(rng, runs):
            lines.append(line)
            progress(_told(line))
    return {
        "runs": runs,
        "seed": seed,
        "viewers": VIEWERS,
        "seconds": round(time.monotonic() - started, 1),
        "checks": lines,
        "held": all(line["held"] for line in lines),
    }


def same_arms(rng: Generator, runs: int) -> Iterator[dict[str, Any]]:
    """A/A: how often the fixed-horizon test says that two arms differ that do not."""
    wrong = dict.fromkeys((DIFFERENCE.name, RATIO.name), 0)
    for _ in range(runs):
        control, treatment = crowd(rng, 0.0)
        for metric in (DIFFERENCE, RATIO):
            wrong[metric.name] += compared(metric, control, treatment).p < 0.05
    for metric in (DIFFERENCE, RATIO):
        low, high = _around(0.05, runs)
        yield _line(f"A/A: false positives, {metric.title}", wrong[metric.name] / runs, low, high)


def daily_looks(rng: Generator, runs: int) -> Iterator[dict[str, Any]]:
    """A/A with a look on each day: how often any look finds what is not there.

    Once with new viewers on each day, as the theorem has it, and once with viewers who return.
    """
    for back, who in ((0.0, "new viewers each day"), (0.4, "viewers who return")):
        fixed = always = 0
        for _ in range(runs):
            (looks,) = daily(dealt(rng, back), (0, 1), [DIFFERENCE])
            fixed += any(look["p"] < 0.05 for look in looks)
            valid = [look["always_valid"] for look in looks]
            always += any(not interval["low"] <= 0.0 <= interval["high"] for interval in valid)
        yield _line(f"{LOOKS} daily looks, {who}: false positives, any look", always / runs, 0.0, 0.05)
        if not back:
            name = f"{LOOKS} daily looks, {who}: false positives, fixed horizon"
            yield _line(name, fixed / runs, 0.15, 1.0)


def coverage(rng: Generator, runs: int) -> Iterator[dict[str, Any]]:
    """How often 95 % intervals hold a true effect of 10 %."""
    covered: dict[str, int] = {}
    for _ in range(runs):
        control, treatment = crowd(rng, UPLIFT)
        for metric in (DIFFERENCE, RATIO):
            effect = compared(metric, control, treatment)
            assert effect.relative_low is not None
            assert effect.relative_high is not None
            for name, held in (
                (metric.title, effect.low <= truth(metric) * UPLIFT <= effect.high),
                (f"{metric.title}, relative", effect.relative_low <= UPLIFT <= effect.relative_high),
            ):
                covered[name] = covered.get(name, 0) + held
    low, high = _around(0.95, runs)
    for name, num in covered.items():
        yield _line(f"coverage of a true effect of 10 %, {name}", num / runs, low, high)


def adjustment(rng: Generator, runs: int) -> Iterator[dict[str, Any]]:
    """CUPED: by how much variance falls where the correlation with what was before is known.

    Twice: as the standard errors say, and as the effects themselves scatter from run to run.
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
        said = 1 - float(np.mean((adjusted[0] / plain[0]) ** 2))
        yield _line(f"CUPED at ρ² = {expected:.2f}: variance removed", said, 0.95 * expected, 1.05 * expected)
        if expected > 0.5:  # below, 1,000 runs scatter by more than the band
            scatter = 1 - float(adjusted[1].var() / plain[1].var())
            band = 0.05 * expected * math.sqrt(1_000 / min(runs, 1_000))
            yield _line(
                f"CUPED at ρ² = {expected:.2f}: variance removed, of the effects over runs",
                scatter,
                expected - band,
                expected + band,
            )


def mismatch(rng: Generator, runs: int) -> Iterator[dict[str, Any]]:
    """How often the sample ratio is said not to be even, where it is and where it is not."""
    flagged = []
    for share in (0.5, SPLIT[0]):
        control = rng.binomial(MANY, share, runs)
        flagged.append(
            np.mean([sample_ratio(int(num), MANY - int(num), 1.0) < SRM_P for num in control]).item()
        )
    yield _line("sample ratio: even splits flagged", flagged[0], 0.0, 0.005)
    yield _line(f"sample ratio: {SPLIT[0]:.1%} of {MANY:,} viewers caught", flagged[1], 0.85, 1.0)


def crowd(rng: Generator, uplift: float) -> tuple[Aggregates, Aggregates]:
    """A control and a treatment with `uplift`."""
    num = VIEWERS // 2
    return aggregates(viewers(rng, num, 0.0)), aggregates(viewers(rng, num, uplift))


MEAN_EXPOSURES, EAGERNESS = 5.0, 2.0  # beyond the first one; the shape of the gamma by which viewers differ
CLICK_RATE, JOIN_RATE = 0.3, 0.1


def viewers(rng: Generator, num: int, uplift: float) -> dict[str, F64]:
    """[V] each: an eager viewer comes more often and also does more per exposure, so ratio and size hang together."""
    eager = rng.gamma(EAGERNESS, 1 / EAGERNESS, num)
    exposures = 1.0 + rng.poisson(MEAN_EXPOSURES * eager).astype(np.float64)
    clicks, joins = (
        rng.poisson(exposures * eager * rate * (1 + uplift)).astype(np.float64)
        for rate in (CLICK_RATE, JOIN_RATE)
    )
    return {"exposures": exposures, "clicks": clicks, "joins": joins}


def dealt(rng: Generator, back: float) -> Panel:
    """Viewers who come evenly over the days, to one of two arms that do not differ; each comes `back` on each later
    day with that probability."""
    came = np.sort(rng.integers(0, LOOKS, VIEWERS))
    eager = rng.gamma(EAGERNESS, 1 / EAGERNESS, VIEWERS)
    days = np.arange(LOOKS)
    here = (days == came[:, None]) | ((days > came[:, None]) & (rng.random((VIEWERS, LOOKS)) < back))
    viewer, day = np.nonzero(here)
    num = len(viewer)
    exposures = 1.0 + rng.poisson(eager[viewer]).astype(np.float64)
    clicks = rng.poisson(exposures * eager[viewer] * CLICK_RATE).astype(np.float64)
    nothing = np.zeros(num)
    return Panel(
        rng.integers(0, 2, VIEWERS).astype(np.int8),
        came.astype(np.int16),
        came == 0,
        viewer,
        day.astype(np.int16),
        {
            "exposures": exposures,
            "active_days": np.ones(num),
            "clicks": clicks,
            "joins": nothing,
            "minutes": nothing,
        },
        {},
        np.zeros(VIEWERS, bool),
        0,
        0,
    )


def truth(metric: Metric) -> float:
    """What a metric of `viewers` is expected to be: E[eager · exposures] = 1 + m · (1 + 1 / shape)."""
    eager_exposures = 1 + MEAN_EXPOSURES * (1 + 1 / EAGERNESS)
    if metric is DIFFERENCE:
        return CLICK_RATE * eager_exposures
    return JOIN_RATE * eager_exposures / (1 + MEAN_EXPOSURES)


def compared(metric: Metric, control: Aggregates, treatment: Aggregates, *, adjusted: bool = False) -> Effect:
    """As the report compares."""
    effect = compare(metric, control, treatment, adjusted=adjusted)
    assert effect is not None
    return effect


def table(result: dict[str, Any]) -> str:
    """The checks as text."""
    lines = [_told(line) for line in result["checks"]]
    end = "held" if result["held"] else "NOT held"
    return "\n".join([*lines, f"{end}: {result['runs']} runs a check, {result['seconds']} s"])


def _told(line: dict[str, Any]) -> str:
    held = "held" if line["held"] else "NOT held"
    return f"{line['check']}: {line['measured']:.2%} of {line['low']:.2%} to {line['high']:.2%}, {held}"


def _around(share: float, runs: int) -> tuple[float, float]:
    band = 0.014 * math.sqrt(1_000 / runs)
    return share - band, share + band


def _line(check: str, measured: float, low: float, high: float) -> dict[str, Any]:
    return {"check": check, "measured": measured, "low": low, "high": high, "held": low <= measured <= high}
