"""Confidence sequence: intervals that hold at every look, however often one looks.

This is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas,
"Time-uniform central limit theory and asymptotic confidence sequences" (Annals of Statistics 2024,
arXiv 2103.06476), Theorem 2.2. After t viewers, the interval is

    mean ± sd · √( 2 (tρ² + 1) / (t² ρ²) · log( √(tρ² + 1) / α ) ).

A difference of means (or of ratios, by the delta method) has the standard error sd / √t. So the
interval is the fixed-horizon one with `factor` in place of 1.96.

How ρ² is chosen: the interval is narrowest after `best_at` viewers (appendix B.2 of the paper),
which is seven times the number of viewers in the first 24 hours of the window. That number depends
on no outcome, and is the same at all later looks. If it is wrong by a factor of three, the interval
is up to 4 % wider. During the first 24 hours, it is seven times the viewers so far. Then ρ changes
with each look, which the theorem does not cover, but the bound below does.

Assumptions: viewers arrive one after another and do not change. Returning viewers make the looks
more similar, which does no harm. Under any dependence, `factor` is at least 3.03. By Bonferroni's
inequality, at most 5 % of experiments then have an error in any of twenty looks.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import lambertw
from scipy.stats import norm

from training.experiment.statistics import ALPHA, POWER, Effect, Interval, Z

# The interval is narrowest after this many days, at the first day's rate of new viewers.
DAYS = 7


def factor(num_viewers: float, best_at: float) -> float:
    """Return the half-width of the interval, in standard errors."""
    time = _time(num_viewers, best_at)
    return math.sqrt(2 * (time + 1) / time * math.log(math.sqrt(time + 1) / ALPHA))


def _time(num_viewers: float, best_at: float) -> float:
    """Return t ρ² after this number of viewers."""
    return float((-lambertw(-(ALPHA**2) / math.e, -1).real - 1) * num_viewers / best_at)


def level(num_viewers: int, best_at: float) -> float:
    """Return the level of the two-sided test that is as strict as a look after these viewers.

    It is at least 1e-12, which is seven standard errors, because the power solver fails for smaller
    levels.
    """
    return max(2 * float(norm.sf(factor(num_viewers, best_at))), 1e-12)


def needed_at_a_look(needed: float, best_at: float) -> int:
    """Return the viewers with which a look has the power of `needed` viewers at a fixed horizon.

    By the normal approximation, this is ((factor + z) / (1.96 + z))² times as many, where z is the
    quantile of the power.
    """
    z = float(norm.ppf(POWER))

    def missing(num: float) -> float:
        return needed * ((factor(num, best_at) + z) / (Z + z)) ** 2 - num

    return math.ceil(float(brentq(missing, needed, 10 * max(needed, best_at))))


def always_valid(effect: Effect, num_viewers: int, best_at: float) -> Interval:
    """Return the interval and the p-value of a look after this number of viewers of both arms.

    The p-value is the smallest α whose interval excludes 0. If there is no effect, at most a share
    α of experiments ever has a look with a p-value below α. For a difference of z standard errors,
    it is √(tρ² + 1) · exp(−z² tρ² / (2 (tρ² + 1))), which is the theorem's interval solved for α.
    """
    wide, time = factor(num_viewers, best_at), _time(num_viewers, best_at)
    half, log_se = wide * effect.se, effect.log_se
    low = high = None
    if effect.relative is not None and log_se is not None:
        ratio, times = 1 + effect.relative, math.exp(wide * log_se)
        low, high = ratio / times - 1, ratio * times - 1
    z = effect.difference / effect.se
    p = min(1.0, math.sqrt(time + 1) * math.exp(-z * z * time / (2 * (time + 1))))
    return Interval(effect.difference - half, effect.difference + half, low, high, p)
