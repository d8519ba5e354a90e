"""Judge the requests of a Locust run by the statistics that Locust keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from loadtest.measure.measure import Measurement, RequestLog, measure
from loadtest.measure.service import PATH, Outcome
from loadtest.measure.verdict import Verdict, judge
from loadtest.workload.profiles import Slo

HEURISTIC = " by a heuristic"


def bucket_ms(ms: float) -> float:
    """Round a time up to a multiple of 0.1 ms, or of 1 ms if it is above a second.

    Because times are rounded up, the number of requests within a limit of whole milliseconds is
    exact: 99.93 ms becomes 100.0, and 100.02 ms becomes 100.1.
    """
    return math.ceil(ms) if ms > 1000 else math.ceil(ms * 10) / 10


def entry_name(outcome: Outcome) -> str:
    """Return the name under which Locust counts the requests with an outcome."""
    return f"{PATH} {outcome.name}{HEURISTIC if outcome.name == 'full' and not outcome.full else ''}"


def judge_entries(entries: Iterable[Any], slo: Slo) -> tuple[Measurement | None, Verdict, list[str]]:
    """Compare Locust's entries with an SLO; return the measurement, the verdict and its reasons.

    An entry has the `name` of `entry_name`, its `num_failures`, and in `response_times` the number
    of requests by their ms, rounded by `bucket_ms`. Without a request there is no measurement, and
    the verdict is void. The rates of the measurement are 0.
    """
    log, counts = RequestLog(), list[int]()
    for entry in entries:
        kind = entry.name.removeprefix(f"{PATH} ")
        name = kind.removesuffix(HEURISTIC)
        outcome = Outcome(name, ok=not entry.num_failures, full=kind == "full")
        for latency_ms, num in entry.response_times.items():
            log.add(0.0, 0.0, latency_ms, outcome, 0)
            counts.append(num)
    if not counts:
        return None, "void", ["no request ended; check --host, --users and --run-time"]
    measured = measure(log.requests().where(np.repeat(np.arange(len(counts)), counts)), math.inf)
    return measured, *judge(measured, slo)
