"""Settings of a search, what the parts of one call share, and the end of its trials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from serve.contract.errors import TabrankError
from training.fit.loop import FitConfig
from training.search.budget import Clock, Forecast, row_s, work
from training.search.leaderboard import BoardEntry, Leaderboard
from training.search.progress import SearchProgress
from training.search.task import Task

# End the trials after this many failures. Fewer may be the fault of single points of the space.
MAX_FAILED_TRIALS = 5


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

    def winner(self) -> BoardEntry | None:
        """Return the best finished network within the cost so far."""
        return self.board.winner(self.task.max_us)


class Deadline:
    """End of the trials: reserves the time that the winner's training and evaluation need."""

    def __init__(self, run: SearchRun, num_train: int, num_valid: int, max_trials: int | None = None) -> None:
        """Create a deadline; `num_train` and `num_valid` count the rows of a trial."""
        self._run, self._max_trials = run, max_trials
        self._num_train, self._num_valid = num_train, num_valid
        # Reserve at most half of the time after reading and rivals, to leave the other for trials.
        self._max_end_s = max(run.clock.budget_s - run.clock.running(), 0.0) / 2

    def left_s(self) -> float:
        """Return the seconds left for trials."""
        winner = self._run.winner()
        if winner is None:
            return self._run.clock.left()
        training = self._run.forecast.within(winner, self._max_end_s)
        return self._run.clock.left() - self._run.forecast.seconds(winner, training)

    def in_time(self, config: FitConfig) -> bool:
        """Return whether a new trial would end in time, judged by the trials before it.

        Always allow trials while none has won.
        """
        paces = [row_s(entry) for entry in self._run.board.tried() if entry.rows]
        if self._run.winner() is None or not paces:
            return True
        return work(config.epochs, self._num_train, self._num_valid) * median(paces) <= self.left_s()

    def is_over(self) -> bool:
        """Return whether to end the trials.

        Without a finished trial, continue until one finishes or `MAX_FAILED_TRIALS` fail.
        """
        self._run.progress.elapsed(self._run.clock.spent())
        tried, is_late = self._run.board.tried(), self.left_s() <= 0
        if self._max_trials is not None and len(tried) >= self._max_trials:
            is_late = True
        failed = [entry for entry in tried if entry.failed]
        if len(failed) >= MAX_FAILED_TRIALS and (is_late or len(failed) == len(tried)):
            return True
        return is_late and any(entry.finished for entry in tried)
