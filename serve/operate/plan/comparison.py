"""Compare a plan with the counts of a real run, and judge whether its replica counts held."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.operate.plan.outcome import Outcome
from serve.operate.plan.trace import NODES, REPLICAS, Phase, Trace

# A start's duration depends on the machine, so counts may come this much earlier or later.
SHIFT_S = 5.0
MAX_OFF = 1.0
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """Planned and real values of one count, over all rows of the timeline that have it."""

    name: str
    # nan where the run has no count.
    real: F64
    planned: F64
    # Each row has a planned count within SHIFT_S that is at most one off.
    holds: bool
    # Shares and means over the rows, compared without a shift.
    exact_share: float
    within_one_share: float
    mean_off: float
    most_off: float
    most_off_shifted: float
    # The mean error without a plan, that is if the first count stayed all the time.
    mean_off_unplanned: float


@dataclass(frozen=True)
class PhaseFit:
    """Means of one count in one phase."""

    phase: Phase
    name: str
    real: float
    planned: float
    # Compared within SHIFT_S.
    most_off: float


@dataclass(frozen=True)
class Comparison:
    """Plan against run; it holds if each scaling deployment does, and nodes are only shown."""

    fits: list[Fit]
    phases: list[PhaseFit]

    @property
    def holds(self) -> bool:
        """Return whether no replica count is more than one off in any row."""
        return all(fit.holds for fit in self.fits if fit.name != NODES)


def check_timeline(trace: Trace, path: Path, names: list[str]) -> None:
    """Raise TabrankError if the timeline counts none of the planned replicas."""
    for name in names:
        counts = trace.counted.get(f"{name}{REPLICAS}", ())
        if not np.isfinite(np.array(counts, float)).any():
            raise TabrankError(
                f"{path}: the column {name}{REPLICAS} is missing or empty; a run writes it with: "
                f"python -m loadtest run --cluster"
            )


def compare(outcome: Outcome) -> Comparison:
    """Return the plan of a timeline against that timeline's own counts."""
    columns = {each.name: f"{each.name}{REPLICAS}" for each in outcome.service.scaled} | {NODES: NODES}
    fits, phases = [], []
    for name, column in columns.items():
        if column in outcome.trace.counted:
            off = _Deviation(outcome, name, column)
            if off.any:
                fits.append(off.fit())
                phases += [found for phase in outcome.trace.phases() if (found := off.phase(phase))]
    return Comparison(fits, phases)


class _Deviation:
    """Deviation of a planned count from the real one, row by row."""

    def __init__(self, outcome: Outcome, name: str, column: str) -> None:
        self.name = name
        self.at_s = np.asarray(outcome.trace.t_s)
        self.real = np.array(outcome.trace.counted[column], float)
        planned, planned_s = outcome.column(name), np.array([sample.t_s for sample in outcome.samples])
        self.planned = planned[np.maximum(np.searchsorted(planned_s, self.at_s, side="right") - 1, 0)]
        self.off = np.abs(self.planned - self.real)
        first = np.searchsorted(planned_s, self.at_s - SHIFT_S)
        end = np.searchsorted(planned_s, self.at_s + SHIFT_S, side="right")
        near = [planned[i:j] for i, j in zip(first, end, strict=True)]
        off = [np.abs(part - real).min(initial=np.inf) for part, real in zip(near, self.real, strict=True)]
        self.shifted = np.array(off)
        self.known = np.isfinite(self.real)
        self.any = bool(self.known.any())

    def fit(self) -> Fit:
        off, real = self.off[self.known], self.real[self.known]
        most = float(self.shifted[self.known].max())
        return Fit(
            self.name,
            self.real,
            self.planned,
            most <= MAX_OFF,
            float((off == 0).mean()),
            float((off <= MAX_OFF).mean()),
            float(off.mean()),
            float(off.max()),
            most,
            float(np.abs(real - real[0]).mean()),
        )

    def phase(self, phase: Phase) -> PhaseFit | None:
        rows = self.known & (self.at_s >= phase.begin_s) & (self.at_s < phase.end_s)
        if not rows.any():
            return None
        real, planned = float(self.real[rows].mean()), float(self.planned[rows].mean())
        return PhaseFit(phase, self.name, real, planned, float(self.shifted[rows].max()))
