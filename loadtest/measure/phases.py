"""A shaped run part by part: what each phase measured, and how soon after a step up all was well again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from loadtest.measure.measure import Measurement, Requests, measure, milliseconds, rounded
from loadtest.workload.profiles import Profile, Slo
from loadtest.workload.shapes import Phase, phases, steps_up

WELL_S = 3  # so many seconds, each of which holds, begin a recovery: one may be luck
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


def describe_steps(requests: Requests, profile: Profile, slo: Slo) -> list[Report]:
    """For each jump to a higher rate the seconds until p99, and full answers, held again; None: not in that phase."""

    return [
        {
            **_named(step),
            "p99_recovered_s": recovered_s(requests, step, lambda measured: in_time(measured, slo)),
            "full_recovered_s": recovered_s(requests, step, lambda measured: in_full(measured, slo)),
        }
        for step in steps_up(profile.line)
    ]


def in_time(measured: Measurement, slo: Slo) -> bool:
    """Whether the p99 is within the SLO."""
    return measured.p99_ms is not None and measured.p99_ms <= slo.p99_ms


def in_full(measured: Measurement, slo: Slo) -> bool:
    """Whether enough requests are answered in full; a failed request is not."""
    full = measured.full_share * (measured.requests - measured.errors)
    return bool(measured.requests) and full >= slo.min_full_share * measured.requests


def recovered_s(requests: Requests, step: Phase, holds: Callable[[Measurement], bool]) -> int | None:
    """Seconds from the step to where it holds again: in each of the next WELL_S seconds, and from there to the end
    of the phase taken together. None: there is no such second in it.
    """
    part = requests.where((requests.at_s >= step.begins_s) & (requests.at_s < step.ends_s))
    part = part.counted_from(step.begins_s)
    num_seconds = int(step.ends_s - step.begins_s)
    length = min(WELL_S, num_seconds)
    well = [holds(measure(part.counted_from(second), 1.0)) for second in range(num_seconds)]
    for first in range(num_seconds - length + 1):
        rest_s = step.ends_s - step.begins_s - first
        if length and all(well[first : first + length]) and holds(measure(part.counted_from(first), rest_s)):
            return first
    return None


def told(report: Report) -> list[str]:
    """Phases and steps in lines for a terminal; nothing for a level run."""
    if len(report["phases"]) == 1 and not report["steps"]:
        return []
    lines = [f"  {span(phase)} ({phase['name']}): {', '.join(parts(phase))}" for phase in report["phases"]]
    return lines + [
        f"  at {round(step['begins_s'], 1):g} s ({step['name']}): {recovery(step)}"
        for step in report["steps"]
    ]


def span(phase: Report) -> str:
    """When a phase was: `3.3–6.7 s`."""
    return f"{round(phase['begins_s'], 1):g}–{round(phase['ends_s'], 1):g} s"


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
        if after_s is None:
            held.append(f"{what} did not come back in that phase")
        else:
            held.append(f"{what} held again after {after_s} s" if after_s else f"{what} held at once")
    return ", ".join(held)


def _named(phase: Phase) -> Report:
    return {"begins_s": round(phase.begins_s, 3), "ends_s": round(phase.ends_s, 3), "name": phase.name}
