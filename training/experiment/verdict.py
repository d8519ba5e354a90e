"""Verdict of an experiment: won, lost, no difference shown, invalid or none, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from serve.config.settings import Experiment
from training.experiment.statistics import MIN_VIEWERS, Z

Verdict = Literal["won", "lost", "no difference shown", "invalid", "no verdict"]
# Below this p-value of the sample ratio test, an experiment is invalid.
SRM_P = 0.001
# Above this share of viewers with exposures in two arms, an experiment is invalid.
MAX_CROSSING = 0.001
# The treatment may have moved a ratio's denominator where its interval of one look excludes zero:
# that of 90 % at the declared end, of 80 % before, when less is known of it. Their half-widths are
# these parts of that of 95 %.
MOVED = {True: 1.645 / 1.96, False: 1.282 / 1.96}
# When the interval that decides holds, by whether the declared end has passed.
DECIDES = {True: "at the declared end", False: "valid however often you look"}


def faults(
    viewers: Mapping[str, int], shares: Mapping[str, float], srm_p: float | None, crossing_share: float
) -> list[str]:
    """Return the reasons why an experiment is invalid; empty if it is valid."""
    found = [
        f"arm {arm!r} has {num} viewer{'s' * (num != 1)}, and a comparison needs at least 2"
        for arm, num in viewers.items()
        if num < 2
    ]
    if srm_p is not None and srm_p < SRM_P:
        found.append(
            f"sample ratio mismatch, p = {srm_p:.1e} (below {SRM_P:g}): {split(viewers, shares)}; no effect is shown"
        )
    if crossing_share > MAX_CROSSING:
        found.append(
            f"{crossing_share:.2%} of the viewers were shown two arms (more than {MAX_CROSSING:.1%}): "
            "the assignment was not stable; no effect is shown"
        )
    return found


def split(viewers: Mapping[str, int], shares: Mapping[str, float]) -> str:
    """Format the number of viewers by arm beside the intended shares."""
    total, expected = max(sum(viewers.values()), 1), sum(shares.values()) or 1.0
    return " and ".join(
        f"{num:,} viewers in {arm!r} ({num / total:.2%}, expected {shares[arm] / expected:.2%})"
        for arm, num in viewers.items()
    )


def too_early(
    declaration: Experiment, num_days: int, num_exposures: int, viewers: Mapping[str, int]
) -> str | None:
    """Return why the run is too short for a verdict, or None; `viewers` are by arm."""
    few = [f"{MIN_VIEWERS - num} more in {arm!r}" for arm, num in viewers.items() if num < MIN_VIEWERS]
    missing = [f"{MIN_VIEWERS} viewers in each arm ({', '.join(few)})"] if few else []
    if num_days < declaration.min_days:
        missing.append(f"{declaration.min_days} whole days (min_days), not {num_days}")
    if num_exposures < declaration.min_exposures:
        missing.append(f"{declaration.min_exposures:,} exposures (min_exposures), not {num_exposures:,}")
    return f"a verdict needs {'; and '.join(missing)}" if missing else None


def verdict(metric: Mapping[str, Any], smallest_effect: float, *, ended: bool) -> tuple[Verdict, str]:
    """Return the verdict on the primary metric, with its reason. For a bad outcome, less wins.

    Once the declared end has passed, the fixed-horizon interval decides. Before, and without a
    declared end, the interval that holds at every look decides.
    """
    title, effect, few = metric["title"], metric["effect"], metric.get("few")
    if effect is None:
        why = too_few(few) if few else "it does not vary in either arm"
        return "no difference shown", f"{title}: {why}"
    interval = deciding(metric, ended)
    low, high = interval["low"], interval["high"]
    what = f"{title} (the share of viewers with any, as few have)" if few else title
    reason = f"{what} {sized(effect)}, 95 % interval {span(interval)}, {DECIDES[ended]}"
    is_better, is_worse = (high < 0, low > 0) if metric["bad"] else (low > 0, high < 0)
    result: Verdict = "won" if is_better else "lost" if is_worse else "no difference shown"
    bounds = interval["relative_low"], interval["relative_high"]
    if low <= 0 <= high and None not in bounds and max(-bounds[0], bounds[1]) < smallest_effect:
        reason += f": an effect of {smallest_effect:.1%} or more is excluded"
    return result, reason


def too_few(few: Mapping[str, Any]) -> str:
    """Return in words how many viewers differ from what is usual, and how many are missing."""
    each = " and ".join(f"{num:,} in {arm!r}" for arm, num in few["viewers"].items())
    missing = few["needed"] - min(few["viewers"].values())
    return (
        f"too few viewers differ from the usual amount ({each}): a comparison of means needs {few['needed']} in each "
        f"arm, {missing} more"
    )


def by_limit(sign: int, metric: Mapping[str, Any], control: str, treatment: str) -> list[str]:
    """Return why a metric that has changed in the direction `sign` may owe this to its limit.

    The effect on what viewers do without a limit has to point the same way by one standard error.
    This error is large, so that two would cost most of the power.
    """
    if not metric.get("raw"):
        return []
    raw, cut = metric["raw"]["effect"], metric["cut_share"]
    if sign * raw["difference"] > (raw["high"] - raw["low"]) / (2 * Z):
        return []
    shares = " and ".join(f"{cut[arm]:.1%} of the sum of {arm!r}" for arm in (treatment, control))
    return [
        f"the limit of a viewer's amount cuts {shares}, and without it {metric['title']} is {sized(raw)} {span(raw)}"
    ]


def by_denominator(
    sign: int, numerator: Mapping[str, Any], denominator: Mapping[str, Any], *, ended: bool
) -> list[str]:
    """Return why a ratio that has changed in the direction `sign` may owe this to its denominator.

    Both parts are means per viewer. The denominator explains the verdict if it may have moved the
    other way, unless the numerator shows an effect like the ratio's.
    """
    moved = denominator["effect"]
    if not (numerator["effect"] and moved):
        return []
    own = deciding(numerator, ended)
    agrees = min(sign * own["low"], sign * own["high"]) > 0
    has_moved = -sign * moved["difference"] > MOVED[ended] * (moved["high"] - moved["low"]) / 2
    if agrees or not has_moved:
        return []
    shows = "shows no difference" if own["low"] <= 0 <= own["high"] else "shows the opposite"
    return [
        f"{denominator['title']} {sized(moved)} move the ratio, and {numerator['title']} {shows} "
        f"({sized(numerator['effect'])} {span(own)})"
    ]


def deciding(metric: Mapping[str, Any], ended: bool) -> Any:
    """Return the interval that decides, which holds as `DECIDES` says."""
    return metric["effect" if ended else "always_valid"]


def outlook(
    verdict: Verdict, days: int | None, awaited: str, instead: str | None, *, fades: bool, ended: bool
) -> str:
    """Describe the data that a decision still needs.

    `awaited` is what comes with these days; `instead` says why more would not help. A verdict
    whose effect `fades` may not be the last one.
    """
    if verdict in ("won", "lost"):
        if fades:
            longer = "declare a longer one under a new name" if ended else "run on"
            return f"the effect fades: {longer} until it stays the same"
        return "this verdict needs no further days"
    if verdict != "no difference shown":
        return "more days do not help"
    if instead:
        return instead
    if days is None:
        return f"the days until {awaited} are unknown: there is too little data, or no new viewers come"
    more = f"after {days:,} more day{'s' * (days != 1)}" if days else "with the viewers so far"
    return f"{awaited} {more}"


def sized(effect: Mapping[str, Any]) -> str:
    """Format an effect: relative if it is defined."""
    relative = effect["relative"]
    return f"{effect['difference']:+.4g}" if relative is None else f"{relative:+.2%}"


def span(interval: Mapping[str, Any]) -> str:
    """Format an interval: relative if it is defined. An upper bound may be infinite."""
    low, high = interval["relative_low"], interval["relative_high"]
    if low is None:
        return f"[{interval['low']:+.4g}, {interval['high']:+.4g}]"
    return f"[{low:+.2%}, {'∞' if high is None else f'{high:+.2%}'}]"
