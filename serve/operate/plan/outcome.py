"""Outcome of a simulation: counts by second, and the answers to the requests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from serve.operate.plan.context import FULL, OPEN, REFUSED, Ledger
from serve.operate.plan.service import PlannedService
from serve.operate.plan.trace import Trace, count_column

# Suffixes of the columns that a deployment has beside its running replicas.
WANTED, ONGOING = "_wanted", "_ongoing"
# Columns without a deployment: replicas without room on a node, and processor seconds so far.
UNPLACED, BUSY = "unplaced", "busy_s"
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """Answers in a part of the trace; simulated latencies are an indication, not a promise."""

    requests: int
    # Answered in popular order at the deadline.
    late_share: float
    refused_share: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Outcome:
    """Outcome of a plan.

    `counts` has a value for the end of each second of the trace, in columns named as in a load
    test's timeline: `Scorer_replicas`, `Scorer_wanted`, `Scorer_ongoing` (as Ray counts; only of
    deployments that scale), `nodes`.
    """

    trace: Trace
    service: PlannedService
    counts: dict[str, F64]
    ledger: Ledger

    @property
    def deployments(self) -> list[str]:
        """Return the names of the deployments, simulated ones first."""
        return [deployment.name for deployment in self.service.deployments]

    def running(self, name: str) -> F64:
        """Return one deployment's running replicas by second; `nodes` counts machines."""
        return self.counts[count_column(name)]

    def answers(self, begin_s: float, end_s: float) -> Answers:
        """Return the answers to the requests that arrived in this time."""
        first, last = np.searchsorted(self._arrived_s, [begin_s, end_s])
        state = self._state[first:last]
        refused = state == REFUSED
        answered = ~refused & (state != OPEN)
        took_ms = (self._answered_s[first:last] - self._arrived_s[first:last])[answered] * 1e3
        p50, p99 = np.percentile(took_ms, [50, 99]) if len(took_ms) else (np.nan, np.nan)
        count = max(len(state), 1)
        return Answers(
            len(state),
            float((~refused & (state != FULL)).sum() / count),
            float(refused.sum() / count),
            float(p50),
            float(p99),
        )

    @cached_property
    def _arrived_s(self) -> F64:
        return np.asarray(self.ledger.arrived_s)

    @cached_property
    def _answered_s(self) -> F64:
        return np.asarray(self.ledger.answered_s)

    @cached_property
    def _state(self) -> NDArray[np.uint8]:
        return np.frombuffer(bytes(self.ledger.state), np.uint8)
