"""Verdict on event freshness and on the load under which it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loadtest.measure.verdict import Verdict, listed, verdict_on

# The p99 of freshness must be below this limit.
LIMIT_MS = 1000.0
# With fewer samples, the p99 would be the slowest sample.
MIN_SAMPLES = 100
# Least share of a target rate that must be achieved.
MIN_ACHIEVED = 0.95


def judge_freshness(report: Mapping[str, Any], late_limit_ms: float) -> tuple[Verdict, list[str]]:
    """Compare a report with the limits; void if the load generator itself was late."""
    broken = list(_broken(report))
    late_ms = max(report[load]["generator_late_ms_p99"] for load in ("rank", "events"))
    return verdict_on(broken, late_ms, late_limit_ms)


def _broken(report: Mapping[str, Any]) -> Iterator[str]:
    fresh, rank, events = report["freshness_ms"], report["rank"], report["events"]
    if fresh["samples"] < MIN_SAMPLES:
        yield f"{fresh['samples']} probes, but at least {MIN_SAMPLES} are needed; run longer, or raise --probes"
    if fresh["samples"] and fresh["p99"] is None:
        missed = listed(fresh["missed_kinds"])
        yield f"{fresh['missed']} of {fresh['samples']} events never showed in a ranking ({missed})"
    elif fresh["samples"] and fresh["p99"] >= LIMIT_MS:
        yield f"the p99 of freshness is {fresh['p99']:.0f} ms; it must be below {LIMIT_MS:g} ms"
    if rank["errors"]:
        kinds = listed(rank["error_kinds"])
        yield f"{rank['errors']} of {rank['requests']} rankings failed ({kinds})"
    if rank["rps"] < MIN_ACHIEVED * rank["target_rps"]:
        yield (
            f"{rank['rps']:.0f} rankings/s were answered, the target is {rank['target_rps']:g}; "
            f"at least {MIN_ACHIEVED:.0%} are needed"
        )
    if events["acknowledged_per_s"] < MIN_ACHIEVED * events["target_per_s"]:
        kinds = listed(events["error_kinds"])
        yield (
            f"{events['acknowledged_per_s']:.0f} events/s were acknowledged, the target is "
            f"{events['target_per_s']:g}; at least {MIN_ACHIEVED:.0%} are needed{f' ({kinds})' if kinds else ''}"
        )
