"""The verdict on a run: held, not held, or void, each reason in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from loadtest.measure.measure import Measurement
from loadtest.workload.profiles import Slo

Verdict = Literal["held", "not held", "void"]
REMEDY = "give it a core of its own or ask for a lower rate"
EXIT_CODES: dict[Verdict, int] = {"held": 0, "not held": 1, "void": 2}


def judge(measured: Measurement, slo: Slo) -> tuple[Verdict, list[str]]:
    """Hold a measurement against an SLO. A limit itself still holds.

    Void if the generator sent late: then what was slow may be this program, and nothing is said of the
    service. Requests that could not be sent do not make a run void but count as errors: the bound on those
    in flight is reached only when answers stay out for longer than a second.
    """
    broken = list(_broken(measured, slo))
    return verdict_on(broken, measured.generator_late_ms_p99, slo.generator_late_ms_p99)


def verdict_on(
    broken: list[str], late_ms: float, limit_ms: float, remedy: str = REMEDY
) -> tuple[Verdict, list[str]]:
    """Return the verdict on a run and its reasons, from the limits that it broke and the generator's lateness (p99)."""
    if late_ms > limit_ms:
        late = (
            f"the load generator itself was late: 1 % of the requests left more than {late_ms:.1f} ms after "
            f"they were due ({limit_ms:g} ms are allowed); {remedy}"
        )
        return "void", [late, *broken]
    return ("not held" if broken else "held"), broken


def listed(kinds: Mapping[str, int]) -> str:
    """Return numbers by kind as text: `3 timeout, 1 HTTP 503`."""
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())


def _broken(measured: Measurement, slo: Slo) -> Iterator[str]:
    for share, value, limit in ((90, measured.p90_ms, slo.p90_ms), (99, measured.p99_ms, slo.p99_ms)):
        if value is None:
            yield f"p{share}: fewer than {share} % of the requests were answered at all"
        elif value > limit:
            yield f"p{share} is {value:.3f} ms, above {limit:g} ms"
    if measured.errors / measured.requests > slo.max_error_share:
        yield (
            f"{measured.errors} of {measured.requests} requests failed ({listed(measured.error_kinds)}); "
            f"the share allowed is {slo.max_error_share:g}"
        )
    if measured.full_share < slo.min_full_share:
        rungs = listed(measured.rungs) or "there were none"
        heuristic = (
            f"; {measured.heuristic} full ones came from a heuristic: give the model arm 100 % of the viewers"
            if measured.heuristic
            else ""
        )
        yield (
            f"{measured.full_share:.3%} of the answers were full and from a model, "
            f"{slo.min_full_share:.3%} are needed ({rungs}{heuristic})"
        )
