"""Numbers of a run by second and by phase, and the time to recover after each step up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from loadtest.measure.cluster import PERIOD_S, ClusterSample
from loadtest.measure.measure import Measurement, Requests, measure, percentile, rounded
from loadtest.workload.profiles import Phase, Profile, Slo, phases, steps_up

# Samples of replicas and nodes are used for this long. Those that an older one names may be gone.
STALE_S = 5 * PERIOD_S
# A recovery starts with this many good seconds in a row, because a single one may be chance.
RECOVERED_S = 3
Report = dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """One second of a run.

    `t_s` counts from the start of the measurement and is negative in the warm-up. `offered_rps`,
    the percentiles, `full_share`, `failed` and `late_ms_p99` describe the requests that were due in
    this second. `answered_rps` counts the good answers that arrived in it. `replicas` and `nodes`
    are from the last sample before the end of the second, and None if there is no recent one.
    """

    t_s: int
    offered_rps: int
    answered_rps: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    full_share: float | None
    failed: int
    late_ms_p99: float | None
    replicas: dict[str, int | None]
    nodes: int | None

    @property
    def full_rps(self) -> float:
        """Return how many of the requests that were due in this second got a full answer.

        `full_share` is not this share, because it leaves out requests that failed.
        """
        return (self.offered_rps - self.failed) * (self.full_share or 0.0)


def timeline(
    requests: Requests, seconds: float, samples: Sequence[ClusterSample], warmup_s: float = 0.0
) -> list[Moment]:
    """Return each second of the warm-up and of the measurement, even one without requests."""
    due = np.floor(requests.at_s).astype(int)
    came = np.floor(requests.ended_s[requests.ok]).astype(int)
    names = sorted({name for sample in samples for name in sample.replicas})
    moments = []
    for second in range(-int(np.ceil(warmup_s)), int(np.ceil(seconds))):
        here = requests.where(due == second)
        num_ok = int(here.ok.sum())
        ends_s = second + 1
        recent = (sample for sample in reversed(samples) if ends_s - STALE_S <= sample.at_s < ends_s)
        seen = next(recent, None)
        moments.append(
            Moment(
                t_s=second,
                offered_rps=len(here.ok),
                answered_rps=int((came == second).sum()),
                **here.percentiles(),
                full_share=int(here.full.sum()) / num_ok if num_ok else None,
                failed=len(here.ok) - num_ok,
                late_ms_p99=percentile(here.late_ms, 0.99),
                replicas={name: seen.replicas.get(name) if seen else None for name in names},
                nodes=seen.nodes if seen else None,
            )
        )
    return moments


def describe_phases(requests: Requests, profile: Profile) -> list[Report]:
    """Return the numbers of each phase, in order; a constant load is one phase."""
    found = []
    for phase in phases(profile.line):
        measured = measure(requests.counted_from(phase.begins_s), phase.ends_s - phase.begins_s)
        numbers = asdict(measured)
        kept = ("requests", "rps", "full_share", "p50_ms", "p90_ms", "p99_ms", "errors")
        found.append({**_named(phase), **{name: rounded(numbers[name]) for name in kept}})
    return found


def describe_steps(requests: Requests, profile: Profile, slo: Slo) -> list[Report]:
    """Return, for each step up, the seconds until the p99 and the share of full answers held again.

    One is None if it did not hold again before the end of its phase.
    """

    return [
        {
            **_named(step),
            "p99_recovered_s": recovered_s(requests, step, lambda measured: in_time(measured, slo)),
            "full_recovered_s": recovered_s(requests, step, lambda measured: in_full(measured, slo)),
        }
        for step in steps_up(profile.line)
    ]


def in_time(measured: Measurement, slo: Slo) -> bool:
    """Return whether the p99 is within the SLO."""
    return measured.p99_ms is not None and measured.p99_ms <= slo.p99_ms


def in_full(measured: Measurement, slo: Slo) -> bool:
    """Return whether the share of requests with a full answer is within the SLO.

    A failed request has no full answer.
    """
    full = measured.full_share * (measured.requests - measured.errors)
    return bool(measured.requests) and full >= slo.min_full_share * measured.requests


def recovered_s(requests: Requests, step: Phase, holds: Callable[[Measurement], bool]) -> int | None:
    """Return the seconds from the step to its recovery, or None if it does not recover.

    The recovery is the first second from which `holds` is true in each of RECOVERED_S seconds, and
    over the rest of the phase as a whole. For example, if the seconds 0 and 1 of a phase are too
    slow and all later ones are not, the result is 2.
    """
    part = requests.where((requests.at_s >= step.begins_s) & (requests.at_s < step.ends_s))
    part = part.counted_from(step.begins_s)
    num_seconds = int(step.ends_s - step.begins_s)
    length = min(RECOVERED_S, num_seconds)
    well = [holds(measure(part.counted_from(second), 1.0)) for second in range(num_seconds)]
    for first in range(num_seconds - length + 1):
        rest_s = step.ends_s - step.begins_s - first
        if length and all(well[first : first + length]) and holds(measure(part.counted_from(first), rest_s)):
            return first
    return None


def step_rows(report: Report) -> list[tuple[str, str, str]]:
    """Return the steps up as rows of (name, recovery, nothing); report.json has the phases too."""
    return [
        (f"\u2003{step['name']}, at {round(step['begins_s'], 1):g} s", recovery(step), "")
        for step in report["steps"]
    ]


def recovery(step: Report) -> str:
    """Return the recovery of a step as text: `p99 held again after 4 s, full answers after 6 s`."""
    return f"p99 {_held(step['p99_recovered_s'])}, full answers {_held(step['full_recovered_s'])}"


def _held(after_s: int | None) -> str:
    if after_s is None:
        return "did not recover in that phase"
    return f"held again after {after_s} s" if after_s else "held at once"


def _named(phase: Phase) -> Report:
    return {"begins_s": round(phase.begins_s, 3), "ends_s": round(phase.ends_s, 3), "name": phase.name}
