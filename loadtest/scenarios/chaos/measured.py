"""Measure the effect of a fault from the requests and replicas, and compare it with the limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.generator.offer import OfferResult
from loadtest.measure.measure import Measurement, measure, rounded_numbers
from loadtest.measure.timeline import in_time, is_normal, recovered_s
from loadtest.measure.verdict import listed
from loadtest.scenarios.chaos.fault import Allowed
from loadtest.workload.profiles import Phase, Slo

# Start of the load that does not count.
WARM_S = 3.0
# A request sent this soon after the fault may have met it.
EDGE_S = 0.02
Found = dict[str, Any]


@dataclass(frozen=True)
class Times:
    """Seconds of the load at which the fault began, was injected, and ended, and the load ended."""

    begun_s: float
    done_s: float
    healed_s: float
    ends_s: float


@dataclass(frozen=True)
class Seen:
    """Observation of the replicas: `whole` if all required ones run, and the running ones."""

    at_s: float
    whole: bool
    running: Mapping[str, int]


def describe(offered: OfferResult, times: Times, seen: Sequence[Seen], slo: Slo) -> Found:
    """Return the numbers of one fault.

    `failed` is after the client's one retry, `failed_first` before it.
    """
    requests = offered.requests
    after = requests.where(requests.at_s >= times.begun_s)
    bad = after.at_s[~after.ok] + after.latency_ms[~after.ok] / 1000
    since = Phase(times.begun_s, times.ends_s, "since")
    parts = {
        "before": (WARM_S, times.begun_s),
        "during": (times.begun_s, max(times.healed_s, times.done_s, times.begun_s + 5.0)),
        "after": (times.ends_s - 5.0, times.ends_s),
    }
    failing_s = float(bad.max() - bad.min()) if len(bad) else 0.0
    gap_s = _gap_s(offered, times)
    found = {
        "requests": len(requests.ok),
        "failed": int((~after.ok).sum()),
        "failed_kinds": dict(after.where(~after.ok).named_counts()),
        "failed_first": int((offered.failed_at_s >= times.begun_s).sum()),
        "failed_first_kinds": _first_kinds(offered, times.begun_s),
        "failed_before": int((offered.failed_at_s < times.begun_s).sum()),
        "in_flight": _in_flight(offered, times),
        "outage_s": max(gap_s, failing_s),
        "strength_s": _strength_s(seen, times),
        "p99_back_s": recovered_s(requests, since, lambda measured: in_time(measured, slo)),
        "whole_s": recovered_s(
            requests, Phase(times.healed_s, times.ends_s, "healed"), lambda measured: is_normal(measured, slo)
        ),
        "rungs": dict(after.where(after.ok).named_counts()),
        **{f"p99_{name}_ms": _part(offered, *span).p99_ms for name, span in parts.items()},
        "generator_late_ms_p99": _part(offered, WARM_S, times.ends_s).generator_late_ms_p99,
        "seconds": times.ends_s,
    }
    return rounded_numbers(found)


def broken(found: Mapping[str, Any], allowed: Allowed) -> Iterator[str]:
    """Yield each broken limit, as a sentence."""
    if allowed.failed_share is not None and found["failed"] > allowed.failed_share * found["requests"]:
        yield (
            f"{found['failed']} of {found['requests']:,} requests failed despite the client's one retry "
            f"({listed(found['failed_kinds'])})"
        )
    first = {"none": 0, "in flight": found["in_flight"], "any": found["requests"]}[allowed.first]
    if found["failed_first"] > first:
        kinds = listed(found["failed_first_kinds"])
        yield f"{found['failed_first']} first tries failed ({kinds}; limit {first})"
    for key, limit_s, _, effect in allowed.times():
        if found[key] is None or found[key] > limit_s:
            took = "more than the observed time" if found[key] is None else f"{found[key]:g} s"
            yield f"{effect} {took} (limit {limit_s:g} s)"
    if found["orphans"]:
        yield f"processes were left behind: {', '.join(found['orphans'])}"


def _part(offered: OfferResult, begins_s: float, ends_s: float) -> Measurement:
    return measure(offered.requests.counted_from(begins_s), max(ends_s - begins_s, 1e-9))


def _first_kinds(offered: OfferResult, since_s: float) -> dict[str, int]:
    pairs = zip(offered.failed_at_s.tolist(), offered.failed_kinds, strict=True)
    return dict(Counter(kind for at_s, kind in pairs if at_s >= since_s))


def _in_flight(offered: OfferResult, times: Times) -> int:
    """Return the number of requests in flight at the time of the fault."""
    requests = offered.requests
    begun = requests.at_s + requests.late_ms / 1000
    return int(((begun <= times.begun_s + EDGE_S) & (requests.ended_s >= times.begun_s)).sum())


def _gap_s(offered: OfferResult, times: Times) -> float:
    """Return the longest time without a good answer, from one second before the fault."""
    ended = np.sort(offered.requests.ended_s[offered.requests.ok])
    ended = ended[(ended >= times.begun_s - 1.0) & (ended <= times.ends_s)]
    edges = np.concatenate([[times.begun_s - 1.0], ended, [times.ends_s]]) if not len(ended) else ended
    return float(np.diff(edges).max(initial=0.0))


def _strength_s(seen: Sequence[Seen], times: Times) -> float | None:
    """Return the seconds from the fault until all replicas ran for good.

    0: no replica was missing at any look. None: one was missing at the last look.
    """
    short = [look.at_s for look in seen if look.at_s >= times.begun_s and not look.whole]
    if not short:
        return 0.0
    later = [look.at_s for look in seen if look.at_s > short[-1]]
    return later[0] - times.begun_s if later else None
