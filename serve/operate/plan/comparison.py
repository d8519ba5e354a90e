"""Compare a plan with the counts of a real run, and judge whether its replica counts held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from serve.contract.errors import TabrankError
from serve.operate.plan.outcome import F64, Outcome
from serve.operate.plan.trace import NODES, TIME, Trace, count_column

# A start's duration depends on the machine, so counts may come this much earlier or later.
SHIFT_S = 5.0
MAX_OFF = 1.0
# Verdicts on one count.
HOLDS = "holds"
TOO_FAR = "more than one off"
NO_BETTER = "no nearer than a constant count"
CONSTANT = "the real count never changed"


def check_timeline(trace: Trace, path: Path, names: list[str]) -> None:
    """Raise TabrankError if the timeline counts none of the planned replicas."""
    for name in names:
        if not np.isfinite(_real(trace, name)).any():
            raise TabrankError(
                f"{path}: the column {count_column(name)} is missing or empty; a run writes it with: "
                f"python -m loadtest run --cluster"
            )


def compare(outcome: Outcome) -> dict[str, Any]:
    """Return the plan of a timeline against that timeline's own counts, for the report.

    It holds if no scaling deployment is ever more than one replica off, and the plan is nearer to
    each real count that changed than "nothing changes" is. Nodes are only shown.
    """
    names = [each.name for each in outcome.service.scaled]
    known = [name for name in (*names, NODES) if np.isfinite(_real(outcome.trace, name)).any()]
    counts, phases = {}, []
    for name in known:
        counts[name], found = _compare_one(outcome, name)
        phases += found
    verdicts = {counts[name]["verdict"] for name in names}
    holds = HOLDS in verdicts and verdicts <= {HOLDS, CONSTANT}
    return {"holds": holds, "shift_s": SHIFT_S, "counts": counts, "phases": phases}


def _real(trace: Trace, name: str) -> F64:
    """Return the real counts by row of the timeline: nan where unknown, empty without a column."""
    return np.array(trace.counted.get(count_column(name), ()), float)


def _compare_one(outcome: Outcome, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return how far one count is off, over all rows that have a real count and by phase."""
    at_s, real = np.array(outcome.trace.t_s), _real(outcome.trace, name)
    at_s, real = at_s[np.isfinite(real)], real[np.isfinite(real)]
    planned_s, counts = outcome.counts[TIME], outcome.running(name)
    planned = counts[np.maximum(np.searchsorted(planned_s, at_s, side="right") - 1, 0)]
    first = np.searchsorted(planned_s, at_s - SHIFT_S)
    end = np.searchsorted(planned_s, at_s + SHIFT_S, side="right")
    off = np.abs(planned - real)
    # How far the nearest planned count within SHIFT_S is off.
    rows = zip(first, end, real, strict=True)
    off_shifted = np.array([np.abs(counts[i:j] - count).min(initial=np.inf) for i, j, count in rows])
    # If the first count stayed all the time.
    off_unplanned = np.abs(real - real[0])
    if off_shifted.max() > MAX_OFF:
        verdict = TOO_FAR
    elif not off_unplanned.any():
        verdict = CONSTANT
    else:
        verdict = HOLDS if off.mean() < off_unplanned.mean() else NO_BETTER
    numbers = {
        "exact_share": (off == 0).mean(),
        "within_one_share": (off <= MAX_OFF).mean(),
        "mean_off": off.mean(),
        "most_off": off.max(),
        "most_off_shifted": off_shifted.max(),
        "mean_off_unplanned": off_unplanned.mean(),
    }
    rounded = {key: round(float(value), 3) for key, value in numbers.items()}
    phases = [
        {
            "phase": phase.name,
            "name": name,
            "real": round(float(real[during].mean()), 2),
            "planned": round(float(planned[during].mean()), 2),
            "most_off_shifted": float(off_shifted[during].max()),
        }
        for phase in outcome.trace.phases()
        if (during := phase.covers(at_s)).any()
    ]
    return {"holds": verdict == HOLDS, "verdict": verdict, **rounded}, phases
