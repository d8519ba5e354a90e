"""Compare two arms by one metric, with the method that holds for as many viewers as have any of it.

In shapes, V is the number of viewers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tea_tasting.aggr import Aggregates

from serve.features.experiment_metrics import Metric
from training.experiment import few_events
from training.experiment.confidence_sequence import always_valid
from training.experiment.panel import BEFORE, F64
from training.experiment.statistics import Effect, Interval, aggregates, compare, explains


@dataclass(frozen=True)
class Contrast:
    """A metric in two arms, control first.

    Attributes:
        arms: the counts, means and covariances of both.
        effect: the effect, with its interval at one look; None if nothing or too little varies.
        valid: the interval of any look.
        adjusted: whether the pre-period adjusts the effect.
        few: None if enough viewers of each arm differ from what is usual. Otherwise, how many do
            (`viewers`, by arm), how many are `needed` in each, and whether the effect is that on
            the share of viewers who have any (`by_share`); if not, there is none.
    """

    arms: tuple[Aggregates, Aggregates]
    effect: Effect | None
    valid: Interval | None
    adjusted: bool = False
    few: dict[str, Any] | None = None


def contrast(
    metric: Metric, sums: Mapping[str, F64], flags: Mapping[str, NDArray[np.bool_]], best_at: float
) -> Contrast:
    """Compare two arms by the sums [V] of their viewers, whose flags [V] are by arm, control first.

    A mean of which one arm has too little rests on the variance of the other arm alone. Then only
    the share of viewers who have any is compared, if the metric counts events.
    """
    values = [sums[metric.above][mine] for mine in flags.values()]
    usual = np.quantile(np.concatenate(values), 0.5, method="lower")
    differ = int((values[0] != usual).sum()), int((values[1] != usual).sum())
    if any(differ) and min(differ) < few_events.ENOUGH:
        by_share = bool(not metric.is_sum and metric.below is None and usual == 0)
        few = {
            "viewers": dict(zip(flags, differ, strict=True)),
            "needed": few_events.ENOUGH,
            "by_share": by_share,
        }
        has_any = {metric.above: (sums[metric.above] > 0).astype(np.float64)}
        control, treatment = (aggregates(has_any, mine) for mine in flags.values())
        viewers = control.count(), treatment.count()
        effect, valid = few_events.shares(differ, viewers) if by_share else (None, None)
        return Contrast((control, treatment), effect, valid, few=few)
    names = [name for part in (metric.above, metric.below) if part for name in (part, part + BEFORE)]
    known = {name: sums[name] for name in names if name in sums}
    control, treatment = (aggregates(known, mine) for mine in flags.values())
    adjusted = explains(metric, control, treatment)
    effect = compare(metric, control, treatment, adjusted=adjusted)
    valid = effect and always_valid(effect, control.count() + treatment.count(), best_at)
    return Contrast((control, treatment), effect, valid, adjusted)


def as_row(effect: Effect, p: float) -> dict[str, Any]:
    """Return an effect as plain data for JSON, with its p-value."""
    names = ("difference", "low", "high", "relative", "relative_low", "relative_high")
    return {name: getattr(effect, name) for name in names} | {"p": p}


def both_intervals(found: Contrast) -> dict[str, Any] | None:
    """Return both intervals of an effect as plain data, in the form of a metric's row."""
    if found.effect is None or found.valid is None:
        return None
    return {"effect": as_row(found.effect, found.effect.p), "always_valid": asdict(found.valid)}
