"""Numbers and verdict of an overload: goodput by rung, refusals, failures and recovery time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.generator.dispatcher import NOT_SENT
from loadtest.measure.measure import Requests, percentile, rounded_numbers
from loadtest.measure.phases import is_normal, recovered_s
from loadtest.measure.verdict import Verdict, listed, verdict_on
from loadtest.workload.profiles import Slo
from loadtest.workload.shapes import Block, Phase

REFUSED = "HTTP 429"
# (Multiple of the knee, least goodput as a share of the knee) up to that multiple.
GOODPUT = ((2.0, 0.9), (float("inf"), 0.7))
# Limit of the time that a replica takes to refuse a request.
REFUSAL_MS = 10.0
BACK_S = 5.0
Found = dict[str, Any]


@dataclass(frozen=True)
class OverloadPlan:
    """Seconds at 60 % of the knee, at a multiple of it, and at 60 % again, without pauses."""

    seconds: float = 60.0
    before_s: float = 5.0
    after_s: float = 15.0
    normal: float = 0.6

    def blocks(self, times: float) -> list[Block]:
        """Return the blocks of the load; its rate is the knee."""
        level = ((self.before_s, self.normal), (self.seconds, times), (self.after_s, self.normal))
        return [Block(seconds, factor, factor) for seconds, factor in level]


def describe(
    requests: Requests, times: float, knee_rps: float, deadline_ms: float, plan: OverloadPlan, slo: Slo
) -> Found:
    """Return the numbers of one run; latencies count from the due time of a request."""
    begins_s, ends_s = plan.before_s, plan.before_s + plan.seconds
    due = requests.where((requests.at_s >= begins_s) & (requests.at_s < ends_s))
    ended = due.named_counts()
    in_time = due.where(due.ok & (due.latency_ms <= deadline_ms)).named_counts()
    rungs = {name: number / plan.seconds for name, number in in_time.items()}
    goodput_rps = sum(rungs.values())
    refused = due.latency_ms[_named(due, REFUSED)]
    found = {
        "times": times,
        "offered_rps": len(due.ok) / plan.seconds,
        "goodput_rps": goodput_rps,
        "goodput_share": goodput_rps / knee_rps,
        "goodput_by_rung_rps": rungs,
        "answers": int(due.ok.sum()),
        "answers_late": int((due.latency_ms[due.ok] > deadline_ms).sum()),
        **{f"p{share * 100:g}_ms": percentile(due.latency_ms[due.ok], share) for share in (0.5, 0.9, 0.99)},
        "refused": len(refused),
        "refused_p50_ms": percentile(refused, 0.5),
        "refused_p99_ms": percentile(refused, 0.99),
        "http_5xx": sum(n for name, n in ended.items() if name.startswith("HTTP 5")),
        "not_sent": ended[NOT_SENT.name],
        "failures": {o.name: n for o, n in due.counts().items() if not o.ok and o.name != REFUSED},
        "generator_late_ms_p99": percentile(due.late_ms, 0.99) or 0.0,
        "back_s": recovered_s(
            requests, Phase(ends_s, ends_s + plan.after_s, "after"), lambda m: is_normal(m, slo)
        ),
    }
    return rounded_numbers(found)


def judge(found: Mapping[str, Any], slo: Slo) -> tuple[Verdict, list[str]]:
    """Compare a run with the limits; void if the load generator was late."""
    remedy = f"{found['offered_rps']:.0f} requests/s are more than its core can send"
    late_ms, limit_ms = found["generator_late_ms_p99"], slo.generator_late_ms_p99
    return verdict_on(list(_broken(found, slo)), late_ms, limit_ms, remedy)


def _broken(found: Mapping[str, Any], slo: Slo) -> Iterator[str]:
    wanted = next(share for times, share in GOODPUT if found["times"] <= times)
    if found["goodput_share"] < wanted:
        yield f"goodput is {found['goodput_share']:.1%} of the knee, but at least {wanted:.0%} are needed"
    if found["p99_ms"] is None or found["p99_ms"] > slo.p99_ms:
        no_answer = found["p99_ms"] is None
        p99 = "no request was answered" if no_answer else f"the p99 of answers is {found['p99_ms']:.1f} ms"
        yield f"{p99} (limit {slo.p99_ms:g} ms)"
    if found["failures"]:
        yield f"requests failed without a refusal: {listed(found['failures'])}"
    replica_ms = found.get("refused_in_replica_p99_ms")
    if replica_ms is not None and replica_ms > REFUSAL_MS:
        yield f"the p99 of refusals in the replica is {replica_ms:g} ms (limit {REFUSAL_MS:g} ms)"
    if found["back_s"] is None or found["back_s"] > BACK_S:
        back = "not normal again" if found["back_s"] is None else f"normal again {found['back_s']} s"
        yield f"the service was {back} after the overload (limit {BACK_S:g} s)"


def _named(requests: Requests, name: str) -> Any:
    return np.array([outcome.name == name for outcome in requests.outcomes], dtype=bool)[requests.codes]
