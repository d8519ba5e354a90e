"""What an experiment comes to: won, lost, no difference shown, or invalid; each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Verdict = Literal["won", "lost", "no difference shown", "invalid"]
SRM_P = 0.001
MOST_CROSSING = 0.001  # of the viewers


def faults(
    viewers: Mapping[str, int], shares: Mapping[str, float], srm_p: float | None, crossing_share: float
) -> list[str]:
    """Why an experiment says nothing; empty where it may."""
    found = [
        f"arm {arm!r} has {num} viewer{'s' * (num != 1)}, which is no data"
        for arm, num in viewers.items()
        if num < 2
    ]
    if srm_p is not None and srm_p < SRM_P:
        total, expected = sum(viewers.values()), sum(shares.values())
        split = " and ".join(
            f"{num:,} in {arm!r} ({num / total:.2%} where {shares[arm] / expected:.2%} was to be)"
            for arm, num in viewers.items()
        )
        found.append(f"sample ratio mismatch, p = {srm_p:.1e} (below {SRM_P:g}): {split}; no effect is shown")
    if crossing_share > MOST_CROSSING:
        found.append(
            f"{crossing_share:.2%} of the viewers were shown two arms (more than {MOST_CROSSING:.1%}): "
            "assignment did not stick; no effect is shown"
        )
    return found


def verdict(metric: Mapping[str, Any], smallest_effect: float, *, ended: bool) -> tuple[Verdict, str]:
    """The verdict by the primary metric, with its reason.

    By the fixed-horizon interval once the declared end has come; until then, and without one, by that which holds at
    every look.
    """
    title, effect = metric["title"], metric["effect"]
    if effect is None:
        return "no difference shown", f"{title} varies in neither arm"
    interval = effect if ended else metric["always_valid"]
    which = "at the declared end" if ended else "at any look"
    low, high = interval["low"], interval["high"]
    said = f"{title} {sized(effect['relative'], effect['difference'])} {span(interval)}, 95 % {which}"
    if low > 0:
        return "won", said
    if high < 0:
        return "lost", said
    bounds = interval["relative_low"], interval["relative_high"]
    if None not in bounds and bounds[0] > -smallest_effect and bounds[1] < smallest_effect:
        return "no difference shown", f"{said}: none of {smallest_effect:.1%} or more either"
    return "no difference shown", said


def outlook(verdict: Verdict, days: int | None, smallest_effect: float, ended: bool) -> str:
    """What is still needed."""
    if verdict != "no difference shown":
        return "no further days are needed" if verdict in ("won", "lost") else "more days do not mend it"
    size = f"an effect of {smallest_effect:.1%} shows with 80 % probability"
    if days is None:
        return f"how many days until {size} cannot be said, for too little is known or no new viewers come"
    more = f"in {days} more day{'s' * (days != 1)}" if days else "with as many viewers as there are"
    return f"{size} {more}" + ("" if ended else ", at a look then")


def sized(relative: float | None, difference: float) -> str:
    """An effect as people read it: relative where it can be."""
    return f"{difference:+.4g}" if relative is None else f"{relative:+.2%}"


def span(interval: Mapping[str, Any]) -> str:
    """An interval as people read it."""
    if interval["relative_low"] is None:
        return f"[{interval['low']:+.4g}, {interval['high']:+.4g}]"
    return f"[{interval['relative_low']:+.2%}, {interval['relative_high']:+.2%}]"


def claims(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What was claimed of the original, and what was measured here."""
    rows = [("", "claimed of the original", "here, with 95 % interval")]
    for metric in metrics:
        if metric["claimed"]:
            name, value = metric["claimed"]
            effect = metric["effect"]
            here = f"{sized(effect['relative'], effect['difference'])} {span(effect)}" if effect else "–"
            rows.append((f"{name} ({metric['unit']})", f"{value:+.2%}", here))
    return rows
