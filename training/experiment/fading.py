"""Whether an effect fades: the effect by the time since a viewer's first exposure.

What is new gets attention for a while. If many viewers are new to an experiment, the mean over all
days shows this attention as an effect. Days since a viewer's first exposure tell the two apart.
All viewers count who came early enough to have had these days, and those who stayed away count as
zero. So an arm that drives viewers off does not look good by those who are left.

An effect fades if viewers changed from early to late days by another factor than in the control.
This is a ratio of two sums of the same viewers, which the delta method compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from serve.features.experiment_metrics import Metric
from training.experiment.comparison import Arms, best_after, capped
from training.experiment.contrast import both_intervals, contrast
from training.experiment.panel import BEFORE, F64, Panel
from training.experiment.verdict import deciding, sized, span

# The days since the first exposure, from and up to, of each period. The last ones have no end.
FIRST, AFTER = "the first two days", "all days after the first two"
PERIODS = {FIRST: (0, 2), "the third to the seventh day": (2, 7), "later days": (7, None), AFTER: (2, None)}
# An effect lasts if that of the days after the first two is at least this part of theirs. With
# +12 % in the first two days and -3 % later, 0 instead lets it win in 13 to 25 % of the runs, and
# this part in 1 to 4 %. Neither costs effects that last any power (docs/experiments.md).
LASTS = 1 / 3


def by_period(
    people: Panel, arms: Arms, metric: Metric, whole: Mapping[str, Any] | None, *, ended: bool
) -> dict[str, Any]:
    """Return the effects on a metric per viewer by the days since the viewers' first exposures.

    `periods` has for each period the `viewers` who came early enough, and the form of a metric's
    row: `effect` and `always_valid`. Its `change` is that of the ratio of treatment and control
    since the first two days. A metric per exposure is taken by its numerator, of which `whole` is
    the effect of all days. `fades` says whether a change against the direction of the first effect
    is shown, at any look, if that one is shown too or has the direction of the whole.
    """
    since = people.day - people.first_day[people.viewer]
    num_days, best_at = int(people.day.max(initial=0)) + 1, best_after(people, arms)
    name, before = metric.above, metric.above + BEFORE
    mean = replace(metric, below=None)
    found: list[dict[str, Any]] = []
    sums: dict[str, F64] = {}
    for title, (start, end) in PERIODS.items():
        here = (since >= start) & (since < (end or np.inf))
        sums[title] = np.bincount(people.viewer[here], people.sums[name][here], len(people.arm)).astype(
            np.float64
        )
        # The viewers who have had all days of the period, or the first one if it has no end.
        flags = {
            arm: (people.arm == arm) & (people.first_day + (end or start + 1) <= num_days) for arm in arms
        }
        viewers = [int(mine.sum()) for mine in flags.values()]
        row: dict[str, Any] = {"period": title, "viewers": sum(viewers)}
        row |= {"effect": None, "always_valid": None, "change": None}
        found.append(row)
        if min(viewers) < 2:
            continue
        known = {name: sums[title], FIRST: sums[FIRST]}
        known |= {before: people.before[before]} if before in people.before else {}
        limited, _ = capped(known, np.logical_or(*flags.values()))
        row |= both_intervals(contrast(mean, limited, flags, best_at)) or {}
        if start:
            limited.pop(before, None)
            row["change"] = both_intervals(contrast(replace(metric, below=FIRST), limited, flags, best_at))
    fades, first = False, found[0]
    if whole and first["effect"]:
        up, sure = first["effect"]["difference"] > 0, deciding(first, ended)
        counts = up == (whole["difference"] > 0) or sure["low"] > 0 or sure["high"] < 0
        changes = [row["change"]["always_valid"] for row in found if row["change"]]
        fades = counts and any(one["high"] < 0 if up else one["low"] > 0 for one in changes)
    return {"metric": metric.name, "periods": found, "fades": fades}


def against(sign: int, found: Mapping[str, Any], *, ended: bool) -> list[str]:
    """Return why a metric that has changed in the direction `sign` may do so only at first.

    Nothing does where the last known period shows the effect by itself.
    """
    first, *_, after = found["periods"]
    sizes = [row["effect"] and row["effect"]["relative"] for row in (first, after)]
    if None in sizes:
        return []
    last = deciding([row for row in found["periods"][:-1] if row["effect"]][-1], ended)
    if min(sign * last["low"], sign * last["high"]) > 0:
        return []
    at_first, later = (sign * size for size in sizes)
    if not (found["fades"] or later < LASTS * at_first):
        return []
    known = (row for row in found["periods"] if row["effect"] and row["period"] != AFTER)
    each = (f"{sized(row['effect'])} {span(deciding(row, ended))} in {row['period']}" for row in known)
    what = "fades" if found["fades"] else "is not seen to last"
    return [f"the effect {what}: {', '.join(each)}"]
