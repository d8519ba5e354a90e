"""Compare a plan with the counts of a real run, and judge whether its replica counts held."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Rows:
    """Rows of the timeline that have a real count, with the planned one."""

    at_s: F64
    real: F64
    planned: F64
    # How far the nearest planned count within SHIFT_S is off.
    off_shifted: F64


def check_timeline(trace: Trace, path: Path, names: list[str]) -> None:
    """Raise TabrankError if the timeline counts none of the planned replicas."""
    for name in names:
        column = count_column(name)
        if not np.isfinite(np.array(trace.counted.get(column, ()), float)).any():
            raise TabrankError(
                f"{path}: the column {column} is missing or empty; a run writes it with: "
                f"python -m loadtest run --cluster"
            )


def compare(outcome: Outcome) -> dict[str, Any]:
    """Return the plan of a timeline against that timeline's own counts, for the report.

    It holds if no scaling deployment is ever more than one replica off, and the plan is nearer to
    each real count that changed than "nothing changes" is. Nodes are only shown.
    """
    names = [each.name for each in outcome.service.scaled]
    known = [
        name
        for name in (*names, NODES)
        if np.isfinite(outcome.trace.counted.get(count_column(name), ())).any()
    ]
    rows = {name: _rows(outcome, name) for name in known}
    counts = {name: _summary(each) for name, each in rows.items()}
    verdicts = {counts[name]["verdict"] for name in names}
    return {
        "holds": HOLDS in verdicts and verdicts <= {HOLDS, CONSTANT},
        "shift_s": SHIFT_S,
        "counts": counts,
        "phases": [row for name, each in rows.items() for row in _phases(outcome, name, each)],
    }


def _rows(outcome: Outcome, name: str) -> _Rows:
    at_s, real = np.array(outcome.trace.t_s), np.array(outcome.trace.counted[count_column(name)])
    at_s, real = at_s[np.isfinite(real)], real[np.isfinite(real)]
    planned_s, planned = outcome.counts[TIME], outcome.counts[count_column(name)]
    same = np.maximum(np.searchsorted(planned_s, at_s, side="right") - 1, 0)
    first = np.searchsorted(planned_s, at_s - SHIFT_S)
    end = np.searchsorted(planned_s, at_s + SHIFT_S, side="right")
    near = [planned[i:j] for i, j in zip(first, end, strict=True)]
    off = [np.abs(part - count).min(initial=np.inf) for part, count in zip(near, real, strict=True)]
    return _Rows(at_s, real, planned[same], np.array(off))


def _summary(rows: _Rows) -> dict[str, Any]:
    off = np.abs(rows.planned - rows.real)
    # If the first count stayed all the time.
    off_unplanned = np.abs(rows.real - rows.real[0])
    if rows.off_shifted.max() > MAX_OFF:
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
        "most_off_shifted": rows.off_shifted.max(),
        "mean_off_unplanned": off_unplanned.mean(),
    }
    rounded = {name: round(float(value), 3) for name, value in numbers.items()}
    return {"holds": verdict == HOLDS, "verdict": verdict, **rounded}


def _phases(outcome: Outcome, name: str, rows: _Rows) -> list[dict[str, Any]]:
    found = []
    for phase in outcome.trace.phases():
        during = phase.covers(rows.at_s)
        if during.any():
            found.append(
                {
                    "phase": phase.name,
                    "name": name,
                    "real": round(float(rows.real[during].mean()), 2),
                    "planned": round(float(rows.planned[during].mean()), 2),
                    "most_off_shifted": float(rows.off_shifted[during].max()),
                }
            )
    return found
