"""Compare two arms on every metric, over the whole window and cumulatively by day."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from serve.features.experiment_metrics import ACTIVE_DAYS, Metric
from training.experiment.confidence_sequence import DAYS, always_valid, level, needed_at_a_look
from training.experiment.contrast import as_row, both_intervals, contrast
from training.experiment.panel import BEFORE, F64, Panel
from training.experiment.statistics import compare, holm, solve

# The fields of a metric that the report shows.
DEFINITION = ("name", "title", "unit", "numerator", "denominator", "bad")
# The rate of new viewers is estimated from this many of the newest days.
RECENT_DAYS = 7
# A viewer's sum counts up to the first quantile over the viewers of both arms or, if that is
# higher, the second quantile over those whose sum is above 0. If few viewers have any, the first
# quantile is 0 and would leave nothing of them.
CAP, CAP_OF_SOME = 0.99, 0.95
# The names of control and treatment.
Arms = tuple[str, str]


def comparisons(
    people: Panel,
    arms: Arms,
    metrics: Sequence[Metric],
    *,
    ratio: float,
    smallest_effect: float,
    ended: bool,
) -> list[dict[str, Any]]:
    """Return for each metric its effect, intervals, power and daily curve.

    `arms` are control and treatment. `ratio` is the treatment's share divided by the control's, and
    `smallest_effect` is a relative effect. Power and p-values belong to the interval that decides.
    If the experiment has `ended`, this is the interval of one look (fixed horizon), and before the
    end it is the interval that holds at any look.
    """
    raw = people.totals()
    totals, limits = capped(raw, people.rows(arms))
    flags, best_at = {arm: people.arm == arm for arm in arms}, best_after(people, arms)
    p, rows = {}, []
    for metric in metrics:
        found = contrast(metric, totals, flags, best_at)
        effect, valid = found.effect, found.valid
        row: dict[str, Any] = {name: getattr(metric, name) for name in DEFINITION}
        row |= {"effect": None, "few": found.few, "raw": None, "cut_share": None}
        row["capped"] = {name: limits[name] for name in (metric.above, metric.below) if name in limits}
        rows.append(row)
        if found.few and not found.few["by_share"]:
            fewest = min(found.few["viewers"].values())
            num = int(people.rows(arms).sum())
            row["viewers_needed"] = math.ceil(num * found.few["needed"] / fewest) if fewest else None
        if effect is None or valid is None:
            continue
        if not found.few and any(limit["viewers"] for limit in row["capped"].values()):
            row["raw"] = both_intervals(contrast(metric, raw, flags, best_at))
            kept, given = (
                {arm: sums[metric.above][mine].sum() for arm, mine in flags.items()} for sums in (totals, raw)
            )
            row["cut_share"] = {arm: 1 - float(kept[arm] / (given[arm] or 1.0)) for arm in arms}
        (control, treatment), adjusted = found.arms, found.adjusted
        plain = compare(metric, control, treatment, adjusted=False) if adjusted else None
        both = control + treatment
        design: dict[str, Any] = {"ratio": ratio, "adjusted": adjusted}
        now = design if ended else {**design, "alpha": level(both.count(), best_at)}
        p[metric.name] = effect.p if ended else valid.p
        needed = solve("n_obs", metric, both, effect=smallest_effect, **design)
        row |= {
            "control": effect.control,
            "treatment": effect.treatment,
            "effect": as_row(effect, p[metric.name]),
            "always_valid": asdict(valid),
            "unadjusted": plain
            and as_row(plain, plain.p if ended else always_valid(plain, both.count(), best_at).p),
            "variance_removed": None if plain is None else 1 - (effect.se / plain.se) ** 2,
            "power": solve("power", metric, both, effect=smallest_effect, **now),
            "detectable": solve("rel_effect_size", metric, both, **now),
            "viewers_needed": needed and (int(needed) if ended else needed_at_a_look(needed, best_at)),
        }
    corrected = holm(p)
    days = daily(people, arms, metrics)
    for row, curve in zip(rows, days, strict=True):
        if row["effect"]:
            row["effect"]["p_holm"] = corrected[row["name"]]
            row["days"] = curve
    return rows


def daily(people: Panel, arms: Arms, metrics: Sequence[Metric]) -> list[list[dict[str, Any]]]:
    """Return for each metric its cumulative effect by day, for the days on which it is defined.

    The p-values hold at any look.
    """
    best_at = best_after(people, arms)
    curves: list[list[dict[str, Any]]] = [[] for _ in metrics]
    for day, sums in people.by_day():
        here = {arm: (people.arm == arm) & (people.first_day <= day) for arm in arms}
        if min(int(flags.sum()) for flags in here.values()) < 2:
            continue
        so_far, _ = capped({**sums, **people.before}, np.logical_or(*here.values()))
        for metric, curve in zip(metrics, curves, strict=True):
            found = contrast(metric, so_far, here, best_at)
            if found.effect is not None and found.valid is not None:
                curve.append(
                    {"day": day, **as_row(found.effect, found.valid.p), "always_valid": asdict(found.valid)}
                )
    return curves


def days_needed(
    people: Panel, arms: Arms, wanted: int | None, is_whole: Sequence[bool], in_each: int = 0
) -> int | None:
    """Return the days until `wanted` viewers have come, and `in_each` to each arm.

    The rate of new viewers is taken from the last seven whole days, or from all days if none is
    whole. Returns None if `wanted` is None or no new viewers come.
    """
    ours = people.rows(arms)
    if wanted is None:
        return None
    num, fewest = int(ours.sum()), min(int((people.arm == arm).sum()) for arm in arms)
    missing = max(wanted, num * max(1.0, in_each / fewest)) - num
    if missing <= 0:
        return 0
    new = np.bincount(people.first_day[ours], minlength=len(is_whole))
    rate = new[np.flatnonzero(is_whole)[-RECENT_DAYS:]].mean() if any(is_whole) else new.mean()
    return math.ceil(missing / rate) if rate > 0 else None


def best_after(people: Panel, arms: Arms) -> int:
    """Return the number of viewers at which the interval for any look is narrowest."""
    return DAYS * max(1, int((people.rows(arms) & people.in_first_24h).sum()))


def capped(sums: Mapping[str, F64], flags: Any) -> tuple[dict[str, F64], dict[str, dict[str, float]]]:
    """Return the viewers' sums [V], cut at limits, and the limits by name.

    The means become winsorised means. Without limits, a few viewers with very large sums make the
    interval of a small arm cover the truth too seldom: an arm that happens to have none of them
    seems both lower and more certain than it is.

    A limit is computed from the viewers with these `flags` [V], those of both arms. Its `viewers`
    counts those above it. Active days have no limit, because the number of days bounds them.
    """
    most, limits = dict(sums), {}
    for name in (name for name in sums if name.removesuffix(BEFORE) != ACTIVE_DAYS.above):
        ours = sums[name][flags]
        parts = (ours, CAP), (ours[ours > 0], CAP_OF_SOME)
        at = max(np.quantile(of, share, method="inverted_cdf") for of, share in parts if len(of))
        limits[name] = {"at": float(at), "viewers": int((ours > at).sum())}
        most[name] = np.minimum(sums[name], at)
    return most, limits
