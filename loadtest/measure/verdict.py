"""Verdict on a run, with its reasons as sentences.

A run *held* its limits, did *not hold* them, or is *void*: the measurement is invalid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from loadtest.measure.measure import Measurement
from loadtest.workload.profiles import Slo

Verdict = Literal["held", "not held", "void"]
REMEDY = "give it a core of its own or lower the rate"
# The p99 of freshness must be below this limit.
FRESHNESS_LIMIT_MS = 1000.0
# With fewer samples, the p99 of freshness would be the slowest sample.
MIN_SAMPLES = 100
# Share of a target rate that must at least be reached.
MIN_ACHIEVED = 0.95
# The knee after the overloads must be at least this share of the knee before them. It is not nearer
# to 1, because the speed of a shared machine varies.
LEAST_KNEE = 0.6
EXIT_CODES: dict[Verdict, int] = {"held": 0, "not held": 1, "void": 2}
# Words for the verdicts on a page.
WORDS = {"held": "held", "not held": "not held", "void": "no verdict"}


def judge(measured: Measurement, slo: Slo) -> tuple[Verdict, list[str]]:
    """Compare a measurement with an SLO; return the verdict and its reasons.

    A value equal to its limit holds. The verdict is void if the generator was late, because the
    latencies may then come from this program, and the measurement says nothing about the service.
    Requests that were not sent count as errors and do not make a measurement invalid: they are
    beyond the limit on requests in flight, which is reached only if the service is slow.
    """
    return verdict_on(list(_broken(measured, slo)), measured.generator_late_ms_p99, slo.generator_late_ms_p99)


def verdict_on(broken: list[str], late_ms: float, limit_ms: float) -> tuple[Verdict, list[str]]:
    """Return the verdict and its reasons.

    `broken` are sentences about limits that did not hold, and `late_ms` is the p99 of the
    generator's lateness.
    """
    if late_ms > limit_ms:
        late = (
            f"the load generator itself was late: it sent 1 % of the requests more than {late_ms:.1f} ms after "
            f"they were due, and {limit_ms:g} ms is the generator's limit; {REMEDY}"
        )
        return "void", [late, *broken]
    return ("not held" if broken else "held"), broken


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict on several parts.

    It is held if all parts held, void if all others are void, and otherwise not held.
    """
    failed = {verdict for verdict in verdicts if verdict != "held"}
    if not failed:
        return "held"
    return "void" if failed == {"void"} else "not held"


def judge_freshness(report: Mapping[str, Any], late_limit_ms: float) -> tuple[Verdict, list[str]]:
    """Compare a report of freshness with its limits; return the verdict and its reasons.

    The verdict is void if the load generator was late.
    """
    late_ms = max(report[load]["generator_late_ms_p99"] for load in ("rank", "events"))
    return verdict_on(list(_broken_freshness(report)), late_ms, late_limit_ms)


def listed(kinds: Mapping[str, int]) -> str:
    """Return counts by kind as text: `3 timeout, 1 HTTP 503`."""
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())


def _broken(measured: Measurement, slo: Slo) -> Iterator[str]:
    for share, value, limit in ((90, measured.p90_ms, slo.p90_ms), (99, measured.p99_ms, slo.p99_ms)):
        if value is None:
            yield f"p{share}: fewer than {share} % of the requests were answered"
        elif value > limit:
            yield f"p{share} is {value:.3f} ms, above {limit:g} ms"
    if measured.errors / measured.requests > slo.max_error_share:
        yield (
            f"{measured.errors:,} of {measured.requests:,} requests failed ({listed(measured.error_kinds)}); "
            f"the allowed share is {slo.max_error_share:g}"
        )
    if measured.full_share < slo.min_full_share:
        notes = listed(measured.rungs) or "no answers"
        if measured.heuristic:
            notes += f"; {measured.heuristic} full answers came from a heuristic, so assign "
            notes += "100 % of the viewers to the model arm"
        yield (
            f"{measured.full_share:.3%} of the answers were full and from a model, "
            f"but at least {slo.min_full_share:.3%} are needed ({notes})"
        )


def _broken_freshness(report: Mapping[str, Any]) -> Iterator[str]:
    fresh, rank, events = report["freshness_ms"], report["rank"], report["events"]
    if fresh["samples"] < MIN_SAMPLES:
        few = f"there were only {fresh['samples']} probes, and at least {MIN_SAMPLES} are needed"
        yield f"{few}; raise --duration"
    if fresh["samples"] and fresh["p99"] is None:
        missed = listed(fresh["missed_kinds"])
        yield f"{fresh['missed']} of {fresh['samples']} probes never showed in a ranking ({missed})"
    elif fresh["samples"] and fresh["p99"] >= FRESHNESS_LIMIT_MS:
        yield f"the p99 of freshness is {fresh['p99']:.0f} ms; it must be below {FRESHNESS_LIMIT_MS:g} ms"
    if rank["errors"]:
        kinds = listed(rank["error_kinds"])
        yield f"{rank['errors']} of {rank['requests']} rankings failed ({kinds})"
    if rank["rps"] < MIN_ACHIEVED * rank["target_rps"]:
        yield (
            f"{rank['rps']:.0f} rankings/s were answered, but at least {MIN_ACHIEVED:.0%} of the "
            f"target of {rank['target_rps']:g} are needed"
        )
    if events["acknowledged_per_s"] < MIN_ACHIEVED * events["target_per_s"]:
        kinds = listed(events["error_kinds"])
        yield (
            f"{events['acknowledged_per_s']:.0f} events/s were acknowledged, but at least {MIN_ACHIEVED:.0%} "
            f"of the target of {events['target_per_s']:g} are needed{f' ({kinds})' if kinds else ''}"
        )
