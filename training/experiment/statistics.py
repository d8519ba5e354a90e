"""The statistics of two arms, all of them from each arm's means, variances and covariances over viewers.

Viewers are what was randomised, so they are the unit whatever a metric is divided by. What is computed by
tea-tasting: Welch's test; the delta method for ratios (Deng, Knoblich and Lu 2018, section 3); CUPED, for ratios too
(Deng, Xu, Kohavi and Walker 2013, sections 3.2 and 4.1); relative effects by the delta method on the logarithm; power;
the sample ratio; Holm's correction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy.stats import norm
from tea_tasting import RatioOfMeans, SampleRatio, adjust_fwer
from tea_tasting.aggr import Aggregates
from tea_tasting.experiment import ExperimentResult
from tea_tasting.metrics.mean import MeanResult

from training.experiment.metrics import Metric
from training.experiment.panel import BEFORE
from training.experiment.served_log import F64

ALPHA = 0.05
POWER = 0.8
Z = float(norm.isf(ALPHA / 2))


@dataclass(frozen=True)
class Effect:
    """A metric's means by arm and what lies between them, with 95 % intervals.

    The `relative` ones are None where a mean is not above 0. Standard errors are what the intervals' width says.
    """

    control: float
    treatment: float
    difference: float
    low: float
    high: float
    p: float
    relative: float | None
    relative_low: float | None
    relative_high: float | None
    result: MeanResult

    @property
    def se(self) -> float:
        """The standard error of the difference."""
        return (self.high - self.low) / (2 * Z)

    @property
    def log_se(self) -> float | None:
        """The standard error of the logarithm of treatment / control."""
        if self.relative_low is None or self.relative_high is None:
            return None
        return math.log((1 + self.relative_high) / (1 + self.relative_low)) / (2 * Z)


def aggregates(columns: Mapping[str, F64]) -> Aggregates:
    """An arm's count, means, variances and covariances; each column holds a number for each viewer, two or more."""
    names = list(columns)
    values = np.stack([columns[name] for name in names])
    covariance = np.atleast_2d(np.cov(values))
    pairs = {
        (names[i], names[j]): float(covariance[i, j])
        for i in range(len(names))
        for j in range(i + 1, len(names))
    }
    return Aggregates(
        values.shape[1],
        dict(zip(names, values.mean(axis=1).tolist(), strict=True)),
        dict(zip(names, covariance.diagonal().tolist(), strict=True)),
        pairs,
    )


def compare(metric: Metric, control: Aggregates, treatment: Aggregates, *, adjusted: bool) -> Effect | None:
    """The effect of the treatment; `adjusted` by what was before. None where neither arm varies.

    That an arm had nothing at all, no join for one, is an effect as well: Welch's test needs one that varies.
    """
    if not _both_counted(metric, control, treatment) or not (
        _varies(metric, control) or _varies(metric, treatment)
    ):
        return None
    try:
        result = _test(metric, adjusted).analyze_aggregates(control, treatment)
    except OverflowError:  # an adjusted mean next to 0, of which no relative effect can be told
        result = _test(metric, adjusted=False).analyze_aggregates(control, treatment)
    if not all(map(math.isfinite, (result.effect_size_ci_lower, result.effect_size_ci_upper, result.pvalue))):
        return None
    relative = result.rel_effect_size, result.rel_effect_size_ci_lower, result.rel_effect_size_ci_upper
    told = result.control > 0 and result.treatment > 0 and all(map(math.isfinite, relative))
    ratio, low, high = map(float, relative) if told else (None, None, None)
    return Effect(
        result.control,
        result.treatment,
        result.effect_size,
        result.effect_size_ci_lower,
        result.effect_size_ci_upper,
        result.pvalue,
        ratio,
        low,
        high,
        result,
    )


def holm(effects: Mapping[str, Effect]) -> dict[str, float]:
    """The p-values after Holm's correction over all metrics (Holm 1979): any one below α by chance is as rare as α."""
    if not effects:
        return {}
    results = ExperimentResult({name: effect.result for name, effect in effects.items()})
    corrected = adjust_fwer(results, alpha=ALPHA, arbitrary_dependence=True, method="bonferroni")
    (comparison,) = corrected.values()
    return {cast(str, name): float(result["pvalue_adj"]) for name, result in comparison.items()}


def sample_ratio(num_control: int, num_treatment: int, ratio: float) -> float:
    """The p-value of viewers split so where treatment : control was to be `ratio` : 1.

    As in Fabijan and others 2019, "Diagnosing sample ratio mismatch in online controlled experiments", section 2.
    """
    counts = {0: Aggregates(num_control), 1: Aggregates(num_treatment)}
    return float(SampleRatio(ratio).analyze(counts, 0, 1).pvalue)


@dataclass(frozen=True)
class Plan:
    """What power depends on besides the viewers.

    The treatment's share over the control's, whether effects are adjusted, the level of the interval that decides.
    """

    ratio: float
    adjusted: bool
    alpha: float = ALPHA


def detectable(metric: Metric, both: Aggregates, plan: Plan) -> float | None:
    """The relative effect that so many viewers show with a power of 80 %."""
    if not _solvable(metric, both):
        return None
    (solved,) = _planned(metric, plan).solve_power_from_aggregates(both, "rel_effect_size")
    return float(solved.rel_effect_size)


def power(metric: Metric, both: Aggregates, effect: float, plan: Plan) -> float | None:
    """The probability with which so many viewers show this relative effect."""
    if not _solvable(metric, both):
        return None
    (solved,) = _planned(metric, plan, effect).solve_power_from_aggregates(both, "power")
    return float(solved.power)


def viewers_needed(metric: Metric, both: Aggregates, effect: float, plan: Plan) -> int | None:
    """How many viewers, of both arms together, show this relative effect with a power of 80 %."""
    if not _solvable(metric, both):
        return None
    (solved,) = _planned(metric, plan, effect).solve_power_from_aggregates(both, "n_obs")
    return int(solved.n_obs)


def explains(metric: Metric, control: Aggregates, treatment: Aggregates) -> bool:
    """Whether there is anything of before that varies, in both arms, to adjust by."""
    above, below = metric.above + BEFORE, metric.below and metric.below + BEFORE
    return all(
        above in arm.mean_ and (below is None or arm.mean(below) > 0) and arm.ratio_var(above, below) > 0
        for arm in (control, treatment)
    )


def _both_counted(metric: Metric, *arms: Aggregates) -> bool:
    return metric.below is None or all(arm.mean(metric.below) > 0 for arm in arms)


def _varies(metric: Metric, arm: Aggregates) -> bool:
    below = 1.0 if metric.below is None else arm.mean(metric.below)
    return below > 0 and arm.ratio_var(metric.above, metric.below) > 1e-18


def _solvable(metric: Metric, both: Aggregates) -> bool:
    return both.mean(metric.above) > 0 and _varies(metric, both)


def _planned(metric: Metric, plan: Plan, effect: float | None = None) -> RatioOfMeans:
    """By the normal distribution: the solver's ends, such as three viewers, leave Student's no degrees of freedom."""
    more = {"alpha": plan.alpha, "ratio": plan.ratio, "rel_effect_size": effect}
    return _test(metric, plan.adjusted, power=POWER, use_t=False, **more)


def _test(metric: Metric, adjusted: bool, **more: Any) -> RatioOfMeans:
    above, below = metric.above, metric.below
    before = (above + BEFORE, below and below + BEFORE) if adjusted else (None, None)
    known = {"confidence_level": 1 - ALPHA, "equal_var": False, "use_t": True}
    return RatioOfMeans(above, below, *before, **known | more)
