"""Loads beyond the knee, the numbers of such a run, and the verdict on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from loadtest.measure.measure import Requests, milliseconds, percentile, rounded
from loadtest.measure.timeline import Moment, timeline
from loadtest.measure.verdict import Verdict, listed
from loadtest.report.report import Report
from loadtest.workload.profiles import Block, Slo

REFUSED = "HTTP 429"
# A replica may take this long to refuse a request: the p99.
REFUSAL_MS = 10.0
# A second is weak if its full answers are below this share of their mean rate.
WEAK = 0.5
# After an overload at least BACK_SHARE of a second's requests must be full again within BACK_S.
BACK_SHARE, BACK_S = 0.99, 2
# If the generator was late in a larger share of the seconds, the run says too little about the
# service, and is void.
MOST_LATE = 0.1
# Rate before and after an overload, as a share of the knee.
NORMAL = 0.6
END = float("inf")
# Limits of shares. A row applies if the load is above the first and up to the second multiple of
# the knee. Its other fields are the name of the number, a description, and the smallest or largest
# value. The bounds 0.999 and 1.999 let a row exclude or include loads of exactly the knee and of
# exactly twice the knee.
LIMITS = (
    (0.0, 0.999, "full_share", "full answers as a share of the requests", "at least", 0.995),
    (0.999, 1.2, "full_of_knee", "full answers as a share of the knee", "at least", 0.75),
    (1.2, 2.0, "full_of_knee", "full answers as a share of the knee", "at least", 0.5),
    (2.0, END, "full_of_knee", "full answers as a share of the knee", "at least", 0.3),
    (1.999, END, "goodput_share", "answers of any rung as a share of the knee", "at least", 1.2),
    (0.0, 1.2, "refused_share", "refusals as a share of the requests", "at most", 0.05),
    (0.0, END, "weak_share", "seconds below half of the mean rate of full answers", "at most", 0.05),
)


@dataclass(frozen=True)
class Overload:
    """Normal load with one overload.

    Attributes:
        times: rate of the overload, as a multiple of the knee.
        seconds: duration of the overload.
        begins_s: second of the load at which the overload begins.
        after_s: duration of the normal load after the overload.
    """

    times: float
    seconds: float = 60.0
    begins_s: float = 5.0
    after_s: float = 15.0

    @property
    def blocks(self) -> list[Block]:
        """Return the blocks of the load, one after the other. At factor 1 the rate is the knee."""
        return [
            Block(self.begins_s, NORMAL, NORMAL),
            Block(self.seconds, self.times, self.times),
            Block(self.after_s, NORMAL, NORMAL),
        ]

    @property
    def ends_s(self) -> float:
        """Return the second of the load at which the overload ends."""
        return self.begins_s + self.seconds

    @property
    def whole_s(self) -> float:
        """Return the duration of the load in seconds."""
        return self.ends_s + self.after_s


def describe(load: Overload, requests: Requests, knee_rps: float, deadline_ms: float, slo: Slo) -> Report:
    """Return the numbers of an overload.

    Seconds in which the generator was late do not count. Latencies count from the time at which a
    request was due.
    """
    moments = timeline(requests, load.whole_s, [])
    late_s = {one.t_s for one in moments if (one.late_ms_p99 or 0.0) > slo.generator_late_ms_p99}
    judged = [one for one in moments if load.begins_s <= one.t_s <= load.ends_s - 1]
    counted = [one for one in judged if one.t_s not in late_s]
    due = requests.where(np.isin(np.floor(requests.at_s), [one.t_s for one in counted]))
    num, seconds = max(len(due.ok), 1), max(len(counted), 1)
    rungs = due.where(due.ok & (due.latency_ms <= deadline_ms)).named_counts()
    refused = due.latency_ms[np.isin(due.codes, [i for i, o in enumerate(due.outcomes) if o.name == REFUSED])]
    full_rps = sum(one.full_rps for one in counted) / seconds
    weak_s = [one.t_s for one in counted if one.full_rps < WEAK * full_rps]
    return {
        "times": load.times,
        "seconds": len(judged),
        "seconds_late": len(judged) - len(counted),
        "offered_rps": len(due.ok) / seconds,
        "full_of_knee": full_rps / knee_rps,
        "full_share": full_rps * seconds / num,
        "weak_seconds": len(weak_s),
        "weak_share": len(weak_s) / seconds,
        "weak_in_a_row": any(second - before == 1 for before, second in pairwise(weak_s)),
        "goodput_share": rungs.total() / seconds / knee_rps,
        "goodput_by_rung_rps": {name: number / seconds for name, number in rungs.items()},
        **{f"p{share * 100:g}_ms": percentile(due.latency_ms[due.ok], share) for share in (0.5, 0.9, 0.99)},
        "refused": len(refused),
        "refused_rps": len(refused) / seconds,
        "refused_share": len(refused) / num,
        "refused_p99_ms": percentile(refused, 0.99),
        "failures": {name: n for name, n in due.where(~due.ok).named_counts().items() if name != REFUSED},
        "generator_late_ms_p99": percentile(due.late_ms, 0.99) or 0.0,
        "back_s": _back_s(load, [one for one in moments if one.t_s not in late_s]),
    }


def _back_s(load: Overload, moments: Sequence[Moment]) -> int | None:
    """Return the seconds from the end of the overload until three seconds in a row are full again.

    The result is None if this does not happen before the end of the load.
    """
    after = [one for one in moments if one.t_s >= load.ends_s]
    is_full = [one.full_rps >= BACK_SHARE * one.offered_rps for one in after]
    back_s = (int(one.t_s - load.ends_s) for i, one in enumerate(after) if all(is_full[i : i + 3]))
    return next(back_s, None)


def judged(
    load: Overload,
    requests: Requests,
    knee_rps: float,
    deadline_ms: float,
    slo: Slo,
    more: Report | None = None,
) -> Report:
    """Return the verdict on a run, its reasons, and the rounded numbers.

    The verdict is void if the generator was late in more than MOST_LATE of the seconds. `more` has
    numbers that the requests do not show.
    """
    found = describe(load, requests, knee_rps, deadline_ms, slo) | (more or {})
    late, seconds, broken = found["seconds_late"], found["seconds"], list(_broken(found, slo))
    verdict: Verdict = "not held" if broken else "held"
    if late > MOST_LATE * seconds:
        verdict = "void"
        broken = [f"the load generator was late in {late} of {seconds} seconds", *broken]
    return {"verdict": verdict, "reasons": broken, **rounded(found)}


def _broken(found: Mapping[str, Any], slo: Slo) -> Iterator[str]:
    if found["weak_in_a_row"]:
        yield "two seconds in a row are below half of the mean rate of full answers"
    if found["failures"]:
        yield f"requests failed otherwise than by a refusal: {listed(found['failures'])}"
    if found["back_s"] is None or found["back_s"] > BACK_S:
        back = "not back" if found["back_s"] is None else f"back {found['back_s']} s"
        yield f"full answers were {back} after the overload (limit {BACK_S} s)"
    for above, up_to, number, what, bound, limit in LIMITS:
        is_below, share = bound == "at least", found[number]
        if above < found["times"] <= up_to and (share < limit if is_below else share > limit):
            yield f"{what}: {share:.1%} ({bound} {limit:.1%})"
    if found["p99_ms"] is None or found["p99_ms"] > slo.p99_ms:
        yield f"the p99 of the answers is {milliseconds(found['p99_ms'])} (limit {slo.p99_ms:g} ms)"
    if (replica_ms := found.get("refused_in_replica_p99_ms") or 0.0) > REFUSAL_MS:
        yield f"the p99 of refusals in the replica is {replica_ms:g} ms (limit {REFUSAL_MS:g} ms)"
