"""Settings of a search, and what the parts of one call share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from serve.contract.errors import TabrankError
from training.search.budget import Clock, Forecast
from training.search.leaderboard import Leaderboard
from training.search.progress import SearchProgress
from training.search.task import Task


@dataclass(frozen=True)
class SearchSettings:
    """Bounds of a search; `budget_s` and `max_trials` bound all its calls together."""

    budget_s: float
    # Largest serving cost of the winner, in µs a candidate.
    max_us: float | None = None
    # The mean of so many networks like the winner, with other seeds, teaches the one written.
    num_teachers: int = 0
    seed: int = 0
    # Drop rows older than that before the log's end; their events still build the state.
    days: float | None = None
    # Published artifacts: start from the current one, and publish a winner that passes.
    models: Path | None = None
    # Start again if the folder holds a search that has ended, or one of other rows.
    restart: bool = False
    max_trials: int | None = None

    def __post_init__(self) -> None:
        if self.max_us is not None and not 0 < self.max_us < math.inf:
            raise TabrankError(f"--max-us-per-candidate {self.max_us:g}: must be a finite number above 0")


@dataclass(frozen=True)
class SearchRun:
    """One call of a search, for its trials and its final training."""

    task: Task
    board: Leaderboard
    clock: Clock
    forecast: Forecast
    progress: SearchProgress
