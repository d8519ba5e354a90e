"""Compare two arms by the means, variances and covariances of each arm over its viewers.

Viewers are the unit of randomisation, and therefore the unit of analysis of every metric. The
package tea-tasting computes

- Welch's test;
- the delta method for ratios (Deng, Knoblich and Lu 2018, section 3);
- CUPED, also for ratios (Deng, Xu, Kohavi and Walker 2013, sections 3.2 and 4.1);
- relative effects, by the delta method on the logarithm;
- power.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest, norm
from tea_tasting import RatioOfMeans
from tea_tasting.aggr import Aggregates

from serve.features.experiment_metrics import Metric
from training.experiment.panel import BEFORE, F64

ALPHA = 0.05
POWER = 0.8
# A verdict needs at least this many viewers in each arm. docs/experiments.md says how often
# intervals cover the truth with fewer.
MIN_VIEWERS = 300
Z = float(norm.isf(ALPHA / 2))


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of a difference, absolute and relative, and its p-value.

    The relative bounds are None if the difference has no relative size.
    """

    low: float
    high: float
    relative_low: float | None
    relative_high: float | None
    p: float


@dataclass(frozen=True)
class Effect(Interval):
    """The means of a metric in both arms and their difference, with its interval at one look.

    The relative values are None if a mean is not above 0. Standard errors are derived from the
    widths of the intervals.
    """

    control: float
    treatment: float
    difference: float
    relative: float | None

    @property
    def se(self) -> float:
        """Return the standard error of the difference."""
        return (self.high - self.low) / (2 * Z)

    @property
    def log_se(self) -> float | None:
        """Return the standard error of the logarithm of treatment / control."""
        return log_error(self.relative_low, self.relative_high)


def log_error(low: float | None, high: float | None) -> float | None:
    """Return the standard error of the logarithm of a ratio from its relative 95 % interval.

    It is None if a bound is missing or has no logarithm.
    """
    return None if low is None or high is None or low <= -1 else math.log((1 + high) / (1 + low)) / (2 * Z)


def aggregates(sums: Mapping[str, F64], rows: Any = slice(None)) -> Aggregates:
    """Return the count, means, variances and covariances of an arm's viewers.

    `sums` holds the sums of the viewers of all arms [V], and `rows` flags [V] of the arm's viewers,
    of whom there must be two or more.
    """
    names = list(sums)
    values = np.stack([sums[name][rows] for name in names])
    covariance = np.atleast_2d(np.cov(values))
    pairs = {(names[i], names[j]): float(covariance[i, j]) for i, j in combinations(range(len(names)), 2)}
    return Aggregates(
        values.shape[1],
        dict(zip(names, values.mean(axis=1).tolist(), strict=True)),
        dict(zip(names, covariance.diagonal().tolist(), strict=True)),
        pairs,
    )


def compare(metric: Metric, control: Aggregates, treatment: Aggregates, *, adjusted: bool) -> Effect | None:
    """Return the effect of the treatment, adjusted by the pre-period if `adjusted`.

    Returns None if neither arm varies. One arm may be constant, for example because it has no
    event, since Welch's test needs only one arm that varies.
    """
    arms = control, treatment
    if metric.below is not None and min(arm.mean(metric.below) for arm in arms) <= 0:
        return None
    if not any(_varies(metric, arm) for arm in arms):
        return None
    try:
        result = _test(metric, adjusted).analyze_aggregates(control, treatment)
    # An adjusted mean close to 0 has no relative effect.
    except OverflowError:
        result = _test(metric, adjusted=False).analyze_aggregates(control, treatment)
    interval = result.effect_size_ci_lower, result.effect_size_ci_upper
    if not all(map(math.isfinite, (*interval, result.pvalue))):
        return None
    relative = result.rel_effect_size, result.rel_effect_size_ci_lower, result.rel_effect_size_ci_upper
    is_relative = result.control > 0 and result.treatment > 0 and all(map(math.isfinite, relative))
    size, low, high = map(float, relative) if is_relative else (None, None, None)
    means = result.control, result.treatment, result.effect_size
    return Effect(*interval, low, high, result.pvalue, *means, size)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return p-values with Holm's correction for their number (Holm 1979).

    The probability of any false positive is then at most α. If each p-value is valid at any look,
    this holds at any look too, because the proof only needs the union bound.
    """
    names = sorted(p, key=p.__getitem__)
    raised = (min(1.0, (len(p) - rank) * p[name]) for rank, name in enumerate(names))
    return dict(zip(names, accumulate(raised, max), strict=True))


def sample_ratio(num_control: int, num_treatment: int, ratio: float) -> float:
    """Return the p-value of the split of viewers, given the intended ratio treatment : control.

    The test is that of Fabijan and others 2019, "Diagnosing sample ratio mismatch in online
    controlled experiments", section 2.
    """
    return float(binomtest(num_treatment, num_control + num_treatment, ratio / (1 + ratio)).pvalue)


def solve(
    wanted: Literal["power", "rel_effect_size", "n_obs"],
    metric: Metric,
    both: Aggregates,
    *,
    ratio: float,
    adjusted: bool,
    alpha: float = ALPHA,
    effect: float | None = None,
) -> float | None:
    """Return a test's power, relative effect, or viewers of both arms, given the other two.

    `ratio` is the treatment's share divided by the control's, `alpha` is the level of the interval
    that decides, and `effect` is relative. Unless the power is wanted, it is 80 %.

    The normal distribution is used, because the solver tries sizes such as three viewers, which
    leave Student's t no degrees of freedom.
    """
    if not (both.mean(metric.above) > 0 and _varies(metric, both)):
        return None
    more = {"alpha": alpha, "ratio": ratio, "rel_effect_size": effect}
    test = _test(metric, adjusted, power=POWER, use_t=False, **more)
    try:
        (solved,) = test.solve_power_from_aggregates(both, wanted)
    except ValueError:
        if wanted != "n_obs":
            raise
        # The solver begins at three viewers, and fails if these are already enough.
        return 3.0
    return float(getattr(solved, wanted))


def explains(metric: Metric, control: Aggregates, treatment: Aggregates) -> bool:
    """Return whether the pre-period varies in both arms, so that CUPED can adjust by it."""
    above, below = metric.above + BEFORE, metric.below and metric.below + BEFORE
    return all(
        above in arm.mean_ and (below is None or arm.mean(below) > 0) and arm.ratio_var(above, below) > 0
        for arm in (control, treatment)
    )


def _varies(metric: Metric, arm: Aggregates) -> bool:
    below = 1.0 if metric.below is None else arm.mean(metric.below)
    return below > 0 and arm.ratio_var(metric.above, metric.below) > 1e-18


def _test(metric: Metric, adjusted: bool, **more: Any) -> RatioOfMeans:
    above, below = metric.above, metric.below
    before = (above + BEFORE, below and below + BEFORE) if adjusted else (None, None)
    known = {"confidence_level": 1 - ALPHA, "equal_var": False, "use_t": True}
    return RatioOfMeans(above, below, *before, **known | more)
