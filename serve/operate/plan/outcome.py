"""Outcome of a simulation: counts by second, and the answers to the requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.operate.plan.service import PlannedService
from serve.operate.plan.trace import Trace, count_column

# Suffixes of the columns that a deployment has beside its running replicas.
WANTED, ONGOING = "_wanted", "_ongoing"
# Columns without a deployment: replicas without room on a node, and processor seconds so far.
UNPLACED, BUSY = "unplaced", "busy_s"
# LATE: no scores in time, answered in popular order. OPEN: not answered when the simulation ended.
OPEN, FULL, LATE, REFUSED = range(4)
F64 = NDArray[np.float64]


class Ledger:
    """Outcomes of the requests, by their number in the order of arrival, from 0."""

    def __init__(self, arrived_s: F64) -> None:
        self.arrived_s = arrived_s
        self.state = np.full(len(arrived_s), OPEN, np.uint8)
        self.answered_s = np.zeros(len(arrived_s))
        # The processor time of all replicas.
        self.busy_s = 0.0


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
        service = self.service
        return [each.name for each in (service.fetch, service.scorer, *service.others)]

    def running(self, name: str) -> F64:
        """Return one deployment's running replicas by second; `nodes` counts machines."""
        return self.counts[count_column(name)]

    def answers(self, begin_s: float, end_s: float) -> dict[str, Any]:
        """Return the answers to the requests that arrived in this time, rounded for a report.

        `late_share` had no scores when these were due. Simulated latencies are an
        indication, not a promise, and None where nothing was answered.
        """
        part = slice(*np.searchsorted(self.ledger.arrived_s, [begin_s, end_s]))
        state = self.ledger.state[part]
        refused = state == REFUSED
        answered = ~refused & (state != OPEN)
        took_ms = (self.ledger.answered_s[part] - self.ledger.arrived_s[part])[answered] * 1e3
        p50_ms, p99_ms = np.percentile(took_ms, [50, 99]).round(4).tolist() if len(took_ms) else (None, None)
        count = max(len(state), 1)
        return {
            "requests": len(state),
            "late_share": round(float((~refused & (state != FULL)).sum() / count), 4),
            "refused_share": round(float(refused.sum() / count), 4),
            "p50_ms": p50_ms,
            "p99_ms": p99_ms,
        }
