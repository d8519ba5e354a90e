"""Base class of faults, the limits on their effects, and the measured effects."""

from __future__ import annotations

from abc import ABC
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from loadtest.generator.offer import OfferResult
from loadtest.measure.cluster import ClusterSample
from loadtest.measure.measure import Measurement, measure, rounded
from loadtest.measure.timeline import in_full, in_time, recovered_s
from loadtest.measure.verdict import listed
from loadtest.report.report import Report
from loadtest.targets.running import Target
from loadtest.workload.profiles import Phase, Slo

First = Literal["none", "in flight", "any"]
# Timeout of the shipped client. A later answer is a failure.
CLIENT_TIMEOUT_S = 0.25
ONE = {"FeatureFetch": 1, "Scorer": 1}
TWO = {"FeatureFetch": 2, "Scorer": 2}
# Start of the load, which does not count.
WARM_S = 3.0
# A request that was sent this soon after the fault counts as in flight when it happened.
EDGE_S = 0.02


@dataclass(frozen=True)
class Allowed:
    """Allowed effects of a fault. An attribute that is None sets no limit.

    Attributes:
        failed_share: share of requests that may fail despite the client's one retry.
        first: requests whose first try may fail: none, those in flight at the fault, or any.
        outage_s: the longest time without a good answer, and from the first failure to the last.
        strength_s: time from the fault until all replicas run again.
        p99_back_s: time from the fault until the p99 holds the SLO again.
        whole_s: time from the end of the fault until the p99 and the share of full answers hold
            the SLO again.
    """

    failed_share: float | None = 0.0
    first: First = "any"
    outage_s: float | None = None
    strength_s: float | None = None
    p99_back_s: float | None = None
    whole_s: float | None = None

    def describe(self) -> str:
        """Return the limits as text."""
        parts = []
        if self.failed_share is not None:
            share = f"{self.failed_share:.0%} failed" if self.failed_share else "0 failed"
            parts.append(share + ("" if self.first == "none" else " with one retry"))
        if self.first == "in flight":
            parts.append("without it at most the requests in flight")
        times = [f"{title} ≤ {limit_s:g} s" for _, limit_s, title, _ in self.times()]
        return ", ".join(parts + times)

    def times(self) -> Iterator[tuple[str, float, str, str]]:
        """Yield the key, the limit, the title and the effect of each limited time."""
        for key, title, effect in (
            ("outage_s", "outage", "the outage took"),
            ("strength_s", "all replicas back", "all replicas ran again after"),
            ("p99_back_s", "p99 recovered", "the p99 recovered after"),
            ("whole_s", "fully recovered", "the service recovered fully after"),
        ):
            limit_s = getattr(self, key)
            if limit_s is not None:
                yield key, limit_s, title, effect


class Fault(ABC):
    """Fault to inject, with the service and the load that it needs, and its allowed effects."""

    # Name for the option `--fault`, and a description for the report.
    name: str
    what: str
    allowed: Allowed
    # Number of replicas of each deployment.
    replicas: Mapping[str, int] = ONE
    # Duration of the fault, from `inject` to `heal`.
    hold_s: float = 0.0
    # Seconds of load after the end of the fault.
    watch_s: float = 20.0
    # A request without an answer within this time counts as failed.
    timeout_s: float = CLIENT_TIMEOUT_S

    def aim(self, target: Target) -> None:  # noqa: B027
        """Find what the fault hits. This happens in advance, so that `inject` takes no time."""

    def inject(self, target: Target) -> None:
        """Inject the fault."""
        raise NotImplementedError

    def heal(self, target: Target) -> None:  # noqa: B027
        """Undo the fault after `hold_s`. By default nothing is done: killed processes restart."""

    def measured(self, load: Injected) -> tuple[Report, list[str]]:
        """Return numbers for the report, and a sentence for each limit that did not hold.

        Both are what the load itself does not show. The numbers may have `notes`, which are
        sentences for the report.
        """
        return {}, []


@dataclass(frozen=True)
class Injected:
    """Load during a fault.

    The load began at `zero_s` by `time.monotonic()`. `gained` takes the name and the labels of a
    metric, and returns by how much it grew during the load.
    """

    offered: OfferResult
    zero_s: float
    gained: Callable[..., float]


@dataclass(frozen=True)
class Times:
    """Times of a fault, in seconds of the load.

    Attributes:
        begun_s: when `inject` was called.
        done_s: when `inject` returned.
        healed_s: when the fault ended.
        ends_s: when the load ended.
    """

    begun_s: float
    done_s: float
    healed_s: float
    ends_s: float


def describe(offered: OfferResult, times: Times, seen: Sequence[ClusterSample], slo: Slo) -> Report:
    """Return the numbers of one fault.

    `failed` counts requests that failed despite the client's one retry, and `failed_first` those
    whose first try failed.
    """
    requests = offered.requests
    after = requests.where(requests.at_s >= times.begun_s)
    failed_first = [failure.kind for failure in offered.failed if failure.at_s >= times.begun_s]
    bad = after.at_s[~after.ok] + after.latency_ms[~after.ok] / 1000
    since, healed = (Phase(at_s, times.ends_s, "") for at_s in (times.begun_s, times.healed_s))
    parts = {
        "before": (WARM_S, times.begun_s),
        "during": (times.begun_s, max(times.healed_s, times.done_s, times.begun_s + 5.0)),
        "after": (times.ends_s - 5.0, times.ends_s),
    }
    failing_s = float(bad.max() - bad.min()) if len(bad) else 0.0
    found = {
        "requests": len(requests.ok),
        "failed": int((~after.ok).sum()),
        "failed_kinds": dict(after.where(~after.ok).named_counts()),
        "failed_first": len(failed_first),
        "failed_first_kinds": dict(Counter(failed_first)),
        "failed_before": len(offered.failed) - len(failed_first),
        "in_flight": _in_flight(offered, times),
        "outage_s": max(_gap_s(offered, times), failing_s),
        "strength_s": _strength_s(seen, times),
        "p99_back_s": recovered_s(requests, since, lambda one: in_time(one, slo)),
        "whole_s": recovered_s(requests, healed, lambda one: in_time(one, slo) and in_full(one, slo)),
        "rungs": dict(after.where(after.ok).named_counts()),
        **{f"p99_{name}_ms": _part(offered, *span).p99_ms for name, span in parts.items()},
        "generator_late_ms_p99": _part(offered, WARM_S, times.ends_s).generator_late_ms_p99,
        "seconds": times.ends_s,
    }
    return dict(rounded(found))


def broken(found: Mapping[str, Any], allowed: Allowed) -> Iterator[str]:
    """Yield a sentence for each limit that did not hold."""
    if allowed.failed_share is not None and found["failed"] > allowed.failed_share * found["requests"]:
        yield (
            f"{found['failed']} of {found['requests']:,} requests failed despite the client's one retry "
            f"({listed(found['failed_kinds'])})"
        )
    first = {"none": 0, "in flight": found["in_flight"], "any": found["requests"]}[allowed.first]
    if found["failed_first"] > first:
        kinds = listed(found["failed_first_kinds"])
        yield f"the first tries of {found['failed_first']} requests failed ({kinds}; limit {first})"
    for key, limit_s, _, effect in allowed.times():
        if found[key] is None or found[key] > limit_s:
            took = "more than the time of the load" if found[key] is None else f"{found[key]:g} s"
            yield f"{effect} {took} (limit {limit_s:g} s)"
    if found["orphans"]:
        yield f"processes were left behind: {', '.join(found['orphans'])}"


def _part(offered: OfferResult, begins_s: float, ends_s: float) -> Measurement:
    return measure(offered.requests.counted_from(begins_s), max(ends_s - begins_s, 1e-9))


def _in_flight(offered: OfferResult, times: Times) -> int:
    """Return how many requests were in flight when the fault began."""
    requests = offered.requests
    begun = requests.at_s + requests.late_ms / 1000
    return int(((begun <= times.begun_s + EDGE_S) & (requests.ended_s >= times.begun_s)).sum())


def _gap_s(offered: OfferResult, times: Times) -> float:
    """Return the longest time without a good answer, in seconds.

    It is looked for from one second before the fault to the end of the load.
    """
    ended = np.sort(offered.requests.ended_s[offered.requests.ok])
    ended = ended[(ended >= times.begun_s - 1.0) & (ended <= times.ends_s)]
    edges = np.concatenate([[times.begun_s - 1.0], ended, [times.ends_s]]) if not len(ended) else ended
    return float(np.diff(edges).max(initial=0.0))


def _strength_s(seen: Sequence[ClusterSample], times: Times) -> float | None:
    """Return the seconds from the fault until all replicas ran, and kept running.

    The result is 0 if no replica was missing at any look, and None if one was missing at the last
    look.
    """
    short = [look.at_s for look in seen if look.at_s >= times.begun_s and not look.whole]
    if not short:
        return 0.0
    later = [look.at_s for look in seen if look.at_s > short[-1]]
    return later[0] - times.begun_s if later else None
