"""Loads beyond the knee, the numbers of such a run, second by second, and the verdict on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from loadtest.measure.measure import Requests, milliseconds, percentile, rounded_numbers
from loadtest.measure.timeline import Moment, timeline
from loadtest.measure.verdict import Verdict, listed
from loadtest.report.report import Report
from loadtest.workload.profiles import Block, Slo

REFUSED = "HTTP 429"
# Limit of the time that a replica takes to refuse a request.
REFUSAL_MS = 10.0
# A second is weak with less than this share of the mean rate of full answers, or, between bursts,
# of its requests.
WEAK = 0.5
# After an overload this share of a second's requests is full again, after at most these seconds.
BACK_SHARE, BACK_S = 0.99, 2
# More seconds with a late generator say too little about the service.
MOST_LATE = 0.1
END = float("inf")
# Limits of shares: above and up to which multiple of the knee, the number, and its least or most.
# A multiple below 1 or 2 is at most 0.999 or 1.999.
LIMITS = (
    (0.0, 0.999, "full_share", "full answers, of the requests", "at least", 0.995),
    (0.999, 1.2, "full_of_knee", "full answers, of the knee", "at least", 0.75),
    (1.2, 2.0, "full_of_knee", "full answers, of the knee", "at least", 0.5),
    (2.0, END, "full_of_knee", "full answers, of the knee", "at least", 0.3),
    (1.999, END, "goodput_share", "answers of any rung, of the knee", "at least", 1.2),
    (0.0, 1.2, "refused_share", "refusals, of the requests", "at most", 0.05),
    (0.0, END, "weak_share", "seconds with less than half of the mean rate of full answers", "at most", 0.05),
)


@dataclass(frozen=True)
class Overload:
    """Load of a share of the knee with one overload of `seconds`, or with several short bursts."""

    times: float
    seconds: float = 60.0
    begins_s: Sequence[float] = (5.0,)
    normal: float = 0.6
    after_s: float = 15.0
    bursts: int = 0

    @classmethod
    def short(cls, number: int) -> Overload:
        """Return bursts of twice the knee for 3 s, at a random second of each 15 s at 70 %."""
        within_s = np.random.default_rng(1).integers(2, 9, number).tolist()
        return cls(2.0, 3.0, [15.0 * i + each for i, each in enumerate(within_s)], 0.7, bursts=number)

    @property
    def blocks(self) -> list[Block]:
        """Return the blocks of the load, without pauses; its rate is the knee."""
        levels, at_s = list[tuple[float, float]](), 0.0
        for begins_s in self.begins_s:
            levels += [(begins_s - at_s, self.normal), (self.seconds, self.times)]
            at_s = begins_s + self.seconds
        return [Block(seconds, factor, factor) for seconds, factor in [*levels, (self.after_s, self.normal)]]

    @property
    def whole_s(self) -> float:
        """Return the duration of the load."""
        return sum(block.seconds for block in self.blocks)

    def exceeds(self, second: int) -> bool:
        """Return True if the whole second is overloaded."""
        return any(begins_s <= second <= begins_s + self.seconds - 1 for begins_s in self.begins_s)


def describe(load: Overload, requests: Requests, knee_rps: float, deadline_ms: float, slo: Slo) -> Report:
    """Return the numbers of an overload, or of a whole load with bursts.

    Seconds in which the generator was late do not count. Latencies count from the due time of a
    request.
    """
    moments = timeline(requests, load.whole_s, [])
    late_s = {one.t_s for one in moments if (one.late_ms_p99 or 0.0) > slo.generator_late_ms_p99}
    judged = [one for one in moments if load.bursts or load.exceeds(one.t_s)]
    counted = [one for one in judged if one.t_s not in late_s]
    due = requests.where(np.isin(np.floor(requests.at_s), [one.t_s for one in counted]))
    num, seconds = max(len(due.ok), 1), max(len(counted), 1)
    rungs = due.where(due.ok & (due.latency_ms <= deadline_ms)).named_counts()
    refused = due.latency_ms[np.isin(due.codes, [i for i, o in enumerate(due.outcomes) if o.name == REFUSED])]
    full_rps = sum(one.full_rps for one in counted) / seconds
    steady = [one for one in counted if not (load.bursts and load.exceeds(one.t_s))]
    weak_s = [o.t_s for o in steady if o.full_rps < WEAK * (o.offered_rps if load.bursts else full_rps)]
    return {
        "times": load.times,
        "bursts": load.bursts,
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
    """Return the longest time (s) after an overload until three seconds in a row are full."""
    longest_s = 0
    for begins_s, until_s in pairwise([*load.begins_s, END]):
        ends_s = begins_s + load.seconds
        after = [one for one in moments if ends_s <= one.t_s < until_s]
        is_full = [one.full_rps >= BACK_SHARE * one.offered_rps for one in after]
        back_s = [int(one.t_s - ends_s) for i, one in enumerate(after) if all(is_full[i : i + 3])]
        if not back_s:
            return None
        longest_s = max(longest_s, back_s[0])
    return longest_s


def judged(
    load: Overload,
    requests: Requests,
    knee_rps: float,
    deadline_ms: float,
    slo: Slo,
    more: Report | None = None,
) -> Report:
    """Return the rounded numbers of a run and the verdict, void if the generator was often late.

    `more` has numbers that the requests do not show.
    """
    found = describe(load, requests, knee_rps, deadline_ms, slo) | (more or {})
    late, seconds, broken = found["seconds_late"], found["seconds"], list(_broken(found, slo))
    verdict: Verdict = "not held" if broken else "held"
    if late > MOST_LATE * seconds:
        verdict = "void"
        broken = [f"the load generator was late in {late} of {seconds} seconds", *broken]
    return {"verdict": verdict, "reasons": broken, **rounded_numbers(found)}


def _broken(found: Mapping[str, Any], slo: Slo) -> Iterator[str]:
    if found["weak_in_a_row"]:
        yield "two seconds in a row have less than half of the full answers"
    if found["failures"]:
        yield f"requests failed without a refusal: {listed(found['failures'])}"
    if found["back_s"] is None or found["back_s"] > BACK_S:
        back = "not" if found["back_s"] is None else f"{found['back_s']} s"
        yield f"full answers were back {back} after the overload (limit {BACK_S} s)"
    if found["bursts"]:
        return
    for above, up_to, number, what, bound, limit in LIMITS:
        is_below, share = bound == "at least", found[number]
        if above < found["times"] <= up_to and (share < limit if is_below else share > limit):
            yield f"{what}: {share:.1%} ({bound} {limit:.1%})"
    if found["p99_ms"] is None or found["p99_ms"] > slo.p99_ms:
        yield f"p99 of answers: {milliseconds(found['p99_ms'])} (limit {slo.p99_ms:g} ms)"
    if (replica_ms := found.get("refused_in_replica_p99_ms") or 0.0) > REFUSAL_MS:
        yield f"the p99 of refusals in the replica is {replica_ms:g} ms (limit {REFUSAL_MS:g} ms)"
