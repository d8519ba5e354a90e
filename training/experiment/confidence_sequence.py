"""Intervals that hold at every look, however often and for whatever reason one looks.

The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit
theory and asymptotic confidence sequences" (Annals of Statistics 2024, arXiv 2103.06476), Theorem 2.2: after t viewers

    mean ± sd · √( 2 (tρ² + 1) / (t² ρ²) · log( √(tρ² + 1) / α ) ).

A difference of means (or of ratios, by the delta method) has the standard error sd / √t, so the interval is that of a
fixed horizon with `factor` in place of 1.96.

How ρ is chosen: ρ² so that the interval is narrowest after `best_at` viewers (appendix B.2 there): seven times those
that came in the 24 hours from the window's first exposure. That number depends on no outcome and is the same at all
looks after those hours; being off by a factor of three costs up to 4 % of the width. Before, it is seven times those
who have come so far, so that ρ moves with each look, which the theorem does not cover: what is said last holds there.

What is assumed: viewers come one after another and stay as they came. A viewer who returns makes the looks more alike
than that, which costs nothing. And whatever the dependence, `factor` is nowhere below 3.03, so that by Bonferroni's
inequality twenty looks together are wrong in at most 5 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.special import lambertw
from scipy.stats import norm

from training.experiment.statistics import ALPHA, POWER, Effect, Z

DAYS = 7


@dataclass(frozen=True)
class Interval:
    """Of the difference, and of the relative effect where there is one."""

    low: float
    high: float
    relative_low: float | None
    relative_high: float | None


def factor(num_viewers: float, best_at: float) -> float:
    """How many standard errors wide the interval is to each side."""
    narrowest = -lambertw(-(ALPHA**2) / math.e, -1).real - 1  # tρ² at best_at
    time = narrowest * num_viewers / best_at
    return math.sqrt(2 * (time + 1) / time * math.log(math.sqrt(time + 1) / ALPHA))


def level(num_viewers: int, best_at: float) -> float:
    """The level of the two-sided test that is as strict at a look after so many viewers.

    At least 1e-12, which is within seven standard errors: beyond, the power solver has no number for it.
    """
    return max(2 * float(norm.sf(factor(num_viewers, best_at))), 1e-12)


def needed_at_a_look(needed: int, best_at: float) -> int:
    """How many viewers show at a look after them what `needed` show at a fixed horizon, with the same power.

    By the normal distribution as many as ((factor + z) / (1.96 + z))² times, z the quantile of the power.
    """
    z = float(norm.ppf(POWER))

    def missing(num: float) -> float:
        return needed * ((factor(num, best_at) + z) / (Z + z)) ** 2 - num

    return math.ceil(float(brentq(missing, needed, 10 * max(needed, best_at))))


def always_valid(effect: Effect, num_viewers: int, best_at: float) -> Interval:
    """The interval beside a fixed-horizon one, after so many viewers of both arms."""
    wide = factor(num_viewers, best_at)
    half, log_se = wide * effect.se, effect.log_se
    relative: tuple[float | None, float | None] = (None, None)
    if effect.relative is not None and log_se is not None:
        ratio, times = 1 + effect.relative, math.exp(wide * log_se)
        relative = (ratio / times - 1, ratio * times - 1)
    return Interval(effect.difference - half, effect.difference + half, *relative)
