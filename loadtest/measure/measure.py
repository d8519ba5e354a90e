"""What a run measured: every request kept exactly, and the numbers that follow from them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loadtest.measure.answer import Outcome

if TYPE_CHECKING:
    from loadtest.measure.answer import Ended

Floats = NDArray[np.float64]


class Record:
    """One row for each request that ended, in the order of their ends; 26 bytes a row.

    Nothing is rounded: Locust's own histogram has steps of 10 ms above 100 ms, where the limit of the p99 is.
    """

    def __init__(self) -> None:
        self._at_s = array("d")
        self._late_ms = array("d")
        self._latency_ms = array("d")
        self._outcome = array("H")
        self._scored = array("H")
        self._outcomes: dict[Outcome, int] = {}

    def __len__(self) -> int:
        return len(self._at_s)

    def add(self, at_s: float, late_ms: float, latency_ms: float, outcome: Outcome, scored: int) -> None:
        """Keep a request: due at `at_s`, sent `late_ms` later, ended `latency_ms` after it was due."""
        self._at_s.append(at_s)
        self._late_ms.append(late_ms)
        self._latency_ms.append(latency_ms)
        self._outcome.append(self._outcomes.setdefault(outcome, len(self._outcomes)))
        self._scored.append(scored)

    def keep(self, ended: Ended, *, zero_s: float = 0.0) -> None:
        """Keep a request as a dispatcher reports it, its time counted from `zero_s`."""
        self.add(ended.at_s - zero_s, ended.late_ms, ended.latency_ms, ended.outcome, ended.scored)

    def requests(self, first: int = 0) -> Requests:
        """The rows from the `first` on, as columns (a copy)."""
        outcomes = list(self._outcomes)
        codes = np.array(self._outcome[first:], dtype=np.intp)
        ok = np.array([outcome.ok for outcome in outcomes], dtype=bool)
        return Requests(
            at_s=np.array(self._at_s[first:]),
            late_ms=np.array(self._late_ms[first:]),
            latency_ms=np.array(self._latency_ms[first:]),
            ok=ok[codes],
            scored=np.array(self._scored[first:], dtype=np.int64),
            outcomes=outcomes,
            codes=codes,
        )


@dataclass(frozen=True)
class Requests:
    """Requests as columns, [R] each; `outcomes[codes]` says how each ended."""

    at_s: Floats
    late_ms: Floats
    latency_ms: Floats
    ok: NDArray[np.bool_]
    scored: NDArray[np.int64]
    outcomes: list[Outcome]
    codes: NDArray[np.intp]

    @property
    def ended_s(self) -> Floats:
        """When each one ended."""
        return self.at_s + self.latency_ms / 1000

    def where(self, chosen: NDArray[np.bool_]) -> Requests:
        """The chosen rows."""
        columns = ("at_s", "late_ms", "latency_ms", "ok", "scored", "codes")
        return replace(self, **{name: getattr(self, name)[chosen] for name in columns})

    def counted_from(self, second: float) -> Requests:
        """All rows, their times counted from another second."""
        return replace(self, at_s=self.at_s - second)

    def counts(self) -> Mapping[Outcome, int]:
        """How many ended in each way, the most frequent first."""
        numbers = np.bincount(self.codes, minlength=len(self.outcomes))
        return Counter({o: int(n) for o, n in zip(self.outcomes, numbers, strict=True) if n})

    def named_counts(self) -> Counter[str]:
        """Count the requests by the name of how they ended."""
        named: Counter[str] = Counter()
        for outcome, number in self.counts().items():
            named[outcome.name] += number
        return named


def percentile(latency_ms: Floats, ok: NDArray[np.bool_], share: float) -> float | None:
    """The least latency within which at least `share` of the requests were answered (nearest rank).

    A failed request is never answered: it ranks after all others, and where the rank falls on one there is no
    such latency (None). So `percentile <= limit` exactly if `share` of all requests were answered within it.
    """
    rank = int(np.ceil(np.round(share * len(ok), 6)))
    answered = latency_ms[ok]
    if not 1 <= rank <= len(answered):
        return None
    return float(np.partition(answered, rank - 1)[rank - 1])


@dataclass(frozen=True)
class Measurement:
    """The numbers of the measured seconds. Latencies are in ms from the scheduled start; None: not reached.

    Latencies, outcomes and lateness are those of the requests due in these seconds, whenever they ended;
    `rps` and `candidates_per_s` count the answers that came in them.
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
    """Sum up the requests of the measured window, from 0 to `seconds`; what came before was warm-up."""
    due = requests.where((requests.at_s >= 0) & (requests.at_s < seconds))
    came = requests.where(requests.ok & (requests.ended_s >= 0) & (requests.ended_s < seconds))
    counts = due.counts()
    errors = {o.name: n for o, n in counts.items() if not o.ok}
    rungs = due.where(due.ok).named_counts()
    full = sum(number for outcome, number in counts.items() if outcome.full)
    answered = rungs.total()
    return Measurement(
        requests=len(due.ok),
        rps=len(came.ok) / seconds,
        candidates_per_s=int(came.scored.sum()) / seconds,
        full_share=full / answered if answered else 0.0,
        p50_ms=percentile(due.latency_ms, due.ok, 0.5),
        p90_ms=percentile(due.latency_ms, due.ok, 0.9),
        p99_ms=percentile(due.latency_ms, due.ok, 0.99),
        max_ms=percentile(due.latency_ms, due.ok, 1.0),
        errors=sum(errors.values()),
        error_kinds=errors,
        rungs=dict(rungs),
        heuristic=rungs["full"] - full,
        generator_late_ms_p99=percentile(due.late_ms, np.ones(len(due.ok), dtype=bool), 0.99) or 0.0,
        seconds=seconds,
    )


def milliseconds(value: float | None) -> str:
    """A latency as people read it; None: a percentile that too many failures lie before."""
    return "not reached" if value is None else f"{value:.1f} ms"


def rounded(value: Any) -> Any:
    """A number to three decimals; all else as it is."""
    return round(value, 3) if isinstance(value, float) else value
