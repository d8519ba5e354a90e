"""A plan beside what a real run counted: whether its replica counts held."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.operate.plan.outcome import Outcome
from serve.operate.plan.trace import NODES, REPLICAS, Phase, Trace

SHIFT_S = 5.0  # a start takes as long as the machine lets it: counts may come this much earlier or later
MOST_OFF = 1.0
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """One count, planned and real, over all rows of the timeline that have it."""

    name: str
    real: F64  # nan where the run counted nothing
    planned: F64
    holds: bool  # at each row some count planned within SHIFT_S of it is at most one off
    exact_share: float  # of the rows, as they lie beside each other
    within_one_share: float
    mean_off: float
    most_off: float
    most_off_shifted: float
    mean_off_unplanned: float  # had nothing been planned: as many as at first, all the time


@dataclass(frozen=True)
class PhaseFit:
    """The means of one count in one phase."""

    phase: Phase
    name: str
    real: float
    planned: float
    most_off: float  # shifted


@dataclass(frozen=True)
class Comparison:
    """The plan against the run. It holds if it does for each deployment that scales; nodes are only shown."""

    fits: list[Fit]
    phases: list[PhaseFit]

    @property
    def holds(self) -> bool:
        """Whether no replica count is more than one off, at any row."""
        return all(fit.holds for fit in self.fits if fit.name != NODES)


def check_timeline(trace: Trace, path: Path, names: list[str]) -> None:
    """Raise TabrankError if the timeline counts none of what is planned."""
    for name in names:
        counts = trace.counted.get(f"{name}{REPLICAS}", ())
        if not np.isfinite(np.array(counts, float)).any():
            raise TabrankError(
                f"{path}: the column {name}{REPLICAS} is missing or empty; a run writes it when it is told of the "
                f"cluster: python -m loadtest run --cluster"
            )


def compare(outcome: Outcome) -> Comparison:
    """The plan of a timeline against that timeline's own counts."""
    columns = {each.name: f"{each.name}{REPLICAS}" for each in outcome.service.scaled} | {NODES: NODES}
    fits, phases = [], []
    for name, column in columns.items():
        if column in outcome.trace.counted:
            off = _Off(outcome, name, column)
            if off.any:
                fits.append(off.fit())
                phases += [found for phase in outcome.trace.phases() if (found := off.phase(phase))]
    return Comparison(fits, phases)


class _Off:
    """How far a planned count is off the real one, row by row."""

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
            most <= MOST_OFF,
            float((off == 0).mean()),
            float((off <= MOST_OFF).mean()),
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
