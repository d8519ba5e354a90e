"""Record every request of a run exactly, and compute the numbers of a measurement from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.measure.service import Ended, Outcome

Floats = NDArray[np.float64]
# Most points of a distribution in a report. A plot would not show more.
MOST_POINTS = 80
# A row of a log of requests, as numpy reads it and as `struct` packs it.
ROW = np.dtype(
    [*((name, "f8") for name in ("at_s", "late_ms", "latency_ms")), ("scored", "u2"), ("codes", "u2")]
)
PACKED = Struct("=dddHH")


class RequestLog:
    """Log of finished requests in the order of their ends, with 28 bytes per row.

    Values are not rounded. Locust's own histogram has steps of 10 ms above 100 ms, and 100 ms is
    the limit of the p99.
    """

    def __init__(self) -> None:
        self._rows = bytearray()
        self._codes: dict[Outcome, int] = {}

    def add(self, at_s: float, late_ms: float, latency_ms: float, outcome: Outcome, scored: int) -> None:
        """Add a request that was due at `at_s`, sent `late_ms` later, and ended `latency_ms` later.

        Both durations count from the due time.
        """
        code = self._codes.setdefault(outcome, len(self._codes))
        self._rows += PACKED.pack(at_s, late_ms, latency_ms, scored, code)

    def keep(self, ended: Ended) -> None:
        """Add a request, in the form in which a dispatcher reports it."""
        self.add(ended.at_s, ended.late_ms, ended.latency_ms, ended.outcome, ended.scored)

    def requests(self, first: int = 0) -> Requests:
        """Return a copy of the rows from `first` on, as columns."""
        rows = np.frombuffer(bytes(self._rows[first * PACKED.size :]), ROW)
        outcomes = list(self._codes)
        columns = {name: rows[name].copy() for name in ROW.fields or ()}
        for flag in ("ok", "full"):
            columns[flag] = np.array([getattr(one, flag) for one in outcomes], bool)[rows["codes"]]
        return Requests(outcomes=outcomes, **columns)


@dataclass(frozen=True)
class Requests:
    """Requests as columns of shape [R], where R is the number of requests.

    `codes` are indexes into `outcomes`, the list of different outcomes. `ok` and `full` repeat the
    flags of each request's outcome.
    """

    at_s: Floats
    late_ms: Floats
    latency_ms: Floats
    scored: NDArray[np.uint16]
    codes: NDArray[np.uint16]
    ok: NDArray[np.bool_]
    full: NDArray[np.bool_]
    outcomes: list[Outcome]

    @property
    def ended_s(self) -> Floats:
        """Return the time at which each request ended, in seconds [R]."""
        return self.at_s + self.latency_ms / 1000

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> Requests:
        """Return the rows that a mask [R] or an array of row numbers chooses."""
        columns = (*(ROW.names or ()), "ok", "full")
        return replace(self, **{name: getattr(self, name)[chosen] for name in columns})

    def counted_from(self, second: float) -> Requests:
        """Return all rows, with times that count from `second`."""
        return replace(self, at_s=self.at_s - second)

    def named_counts(self) -> Counter[str]:
        """Return the number of requests by the name of their outcome."""
        numbers = np.bincount(self.codes, minlength=len(self.outcomes)).tolist()
        named: Counter[str] = Counter()
        for outcome, number in zip(self.outcomes, numbers, strict=True):
            named[outcome.name] += number
        return +named

    def percentiles(self) -> dict[str, float | None]:
        """Return the p50, p90 and p99 of the latencies, by their names in reports."""
        shares = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99}
        return {name: percentile(self.latency_ms, share, self.ok) for name, share in shares.items()}


def percentile(latency_ms: Floats, share: float, ok: NDArray[np.bool_] | None = None) -> float | None:
    """Return the smallest latency within which at least `share` of the requests were answered.

    `ok` tells which requests were answered; without it, all were.

    The method is nearest rank. Failed requests were never answered, so they rank after all others,
    and the result is None if the rank falls on one of them. Therefore `percentile <= limit` holds
    exactly if `share` of all requests were answered within the limit. For example, if 2 of 100
    requests failed, the p99 is None, and the p90 is that of the 90th fastest answer.
    """
    rank = int(np.ceil(np.round(share * len(latency_ms), 6)))
    answered = latency_ms if ok is None else latency_ms[ok]
    if not 1 <= rank <= len(answered):
        return None
    return float(np.partition(answered, rank - 1)[rank - 1])


def tail(latency_ms: Floats, total: int) -> list[list[float]]:
    """Return points (ms, share of `total` requests that took longer), from the slowest answer down.

    There are at most `MOST_POINTS` points, and they are dense where answers are slow. A request
    without an answer took longer than any other.
    """
    ranks = np.unique(np.geomspace(1, max(len(latency_ms), 1), MOST_POINTS).astype(int))[: len(latency_ms)]
    at_ms = np.sort(latency_ms)[::-1][ranks - 1]
    left = (total - len(latency_ms) + ranks - 0.5) / max(total, 1)
    return [[round(float(ms), 3), float(f"{share:.4g}")] for ms, share in zip(at_ms, left, strict=True)]


@dataclass(frozen=True)
class Measurement:
    """Numbers of the measured seconds.

    Latencies are in ms and count from the time at which a request was due. One is None if so many
    requests failed that its percentile does not exist. Latencies, outcomes and lateness describe
    the requests that were due in these seconds, whenever they ended. `rps` and `candidates_per_s`
    count the answers that arrived in these seconds.
    """

    requests: int
    rps: float
    candidates_per_s: float
    full_share: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    errors: int
    error_kinds: dict[str, int]
    rungs: dict[str, int]
    heuristic: int
    generator_late_ms_p99: float
    seconds: float


def measure(requests: Requests, seconds: float) -> Measurement:
    """Return the numbers of the seconds from 0 to `seconds`. Times below 0 are of the warm-up."""
    due = requests.where((requests.at_s >= 0) & (requests.at_s < seconds))
    came = requests.where(requests.ok & (requests.ended_s >= 0) & (requests.ended_s < seconds))
    errors = dict(due.where(~due.ok).named_counts())
    rungs = due.where(due.ok).named_counts()
    full = int(due.full.sum())
    answered = rungs.total()
    return Measurement(
        requests=len(due.ok),
        rps=len(came.ok) / seconds,
        candidates_per_s=int(came.scored.sum()) / seconds,
        full_share=full / answered if answered else 0.0,
        **due.percentiles(),
        max_ms=percentile(due.latency_ms, 1.0, due.ok),
        errors=sum(errors.values()),
        error_kinds=errors,
        rungs=dict(rungs),
        heuristic=rungs["full"] - full,
        generator_late_ms_p99=percentile(due.late_ms, 0.99) or 0.0,
        seconds=seconds,
    )


def milliseconds(value: float | None) -> str:
    """Return a latency as text; None means that so many requests failed that there is none."""
    return "not reached" if value is None else f"{value:.1f} ms"


def rounded(value: Any) -> Any:
    """Return a value with its floats rounded to three decimals, also within a list or a dict."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value
