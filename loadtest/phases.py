"""A shaped run part by part: what each phase measured, and how soon after a step up all was well again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from loadtest.measure import Requests, measure, milliseconds, rounded
from loadtest.profiles import Profile, Slo
from loadtest.shapes import Phase, phases, steps_up
from loadtest.timeline import Moment

WELL_S = 3  # so many seconds in a row count as well again: one may be luck
Report = dict[str, Any]


def describe_phases(requests: Requests, profile: Profile) -> list[Report]:
    """The numbers of each phase; a level run is one."""
    found = []
    for phase in phases(profile.line):
        measured = measure(requests.counted_from(phase.begins_s), phase.ends_s - phase.begins_s)
        numbers = asdict(measured)
        kept = ("requests", "rps", "full_share", "p50_ms", "p90_ms", "p99_ms", "errors")
        found.append({**_named(phase), **{name: rounded(numbers[name]) for name in kept}})
    return found


def describe_steps(moments: Sequence[Moment], profile: Profile, slo: Slo) -> list[Report]:
    """For each jump to a higher rate the seconds until p99, and full answers, held again; None: not in that phase."""

    def p99_holds(moment: Moment) -> bool:
        return moment.p99_ms is not None and moment.p99_ms <= slo.p99_ms

    def full_holds(moment: Moment) -> bool:
        return moment.full_share is not None and moment.full_share >= slo.min_full_share

    return [
        {
            **_named(step),
            "p99_recovered_s": recovered_s(moments, step, p99_holds),
            "full_recovered_s": recovered_s(moments, step, full_holds),
        }
        for step in steps_up(profile.line)
    ]


def recovered_s(moments: Sequence[Moment], step: Phase, holds: Callable[[Moment], bool]) -> int | None:
    """Seconds from the step to the first of WELL_S seconds in a row that hold; None: there are none in its phase."""
    part = [moment for moment in moments if step.begins_s <= moment.t_s < step.ends_s]
    well = [holds(moment) for moment in part]
    length = min(WELL_S, len(part))
    for first in range(len(part) - length + 1):
        if length and all(well[first : first + length]):
            return first
    return None


def told(report: Report) -> list[str]:
    """Phases and steps in lines for a terminal; nothing for a level run."""
    if len(report["phases"]) == 1 and not report["steps"]:
        return []
    lines = [
        f"  {phase['begins_s']:g}–{phase['ends_s']:g} s ({phase['name']}): {', '.join(parts(phase))}"
        for phase in report["phases"]
    ]
    return lines + [
        f"  at {step['begins_s']:g} s ({step['name']}): {recovery(step)}" for step in report["steps"]
    ]


def parts(phase: Report) -> list[str]:
    """What a phase measured, in words; where nothing was asked there is no share of anything."""
    if not phase["requests"]:
        return ["no requests"]
    return [
        f"p99 {milliseconds(phase['p99_ms'])}",
        f"{phase['full_share']:.2%} full",
        f"{phase['errors']} errors",
    ]


def recovery(step: Report) -> str:
    """`p99 held again after 4 s, full answers after 6 s`."""
    held = []
    for what, key in (("p99", "p99_recovered_s"), ("full answers", "full_recovered_s")):
        after_s = step[key]
        how = "not in that phase" if after_s is None else "at once" if after_s == 0 else f"after {after_s} s"
        held.append(f"{what} held {'' if after_s is None else 'again ' if after_s else ''}{how}")
    return ", ".join(held)


def _named(phase: Phase) -> Report:
    return {"begins_s": round(phase.begins_s, 3), "ends_s": round(phase.ends_s, 3), "name": phase.name}
