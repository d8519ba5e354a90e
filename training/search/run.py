"""What the parts of one call of a search share, and the end of its trials."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

import ray.tune

from training.fit.loop import FitConfig
from training.search.budget import Clock, Forecast, row_s, work
from training.search.leaderboard import BoardEntry, Leaderboard
from training.search.progress import SearchProgress
from training.search.task import Task

# End the trials after this many failures. Fewer may be the fault of single points of the space.
MAX_FAILED_TRIALS = 5


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
        return self.board.winner(self.task.settings.max_us)


class Deadline(ray.tune.Stopper):  # type: ignore[misc]
    """End of the trials: reserves the time that the winner's training and evaluation need."""

    def __init__(self, run: SearchRun, num_train: int, num_valid: int) -> None:
        """Create a deadline; `num_train` and `num_valid` count the rows of a trial."""
        self._run = run
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

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune stores a copy of its configuration, which nobody reads.
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stop a single trial: the scheduler does."""
        return False

    def stop_all(self) -> bool:
        """Return whether to end the trials.

        Without a finished trial, continue until one finishes or `MAX_FAILED_TRIALS` fail.
        """
        self._run.progress.elapsed(self._run.clock.spent())
        tried, most = self._run.board.tried(), self._run.task.settings.max_trials
        is_late = self.left_s() <= 0 or (most is not None and len(tried) >= most)
        failed = [entry for entry in tried if entry.failed]
        if len(failed) >= MAX_FAILED_TRIALS and (is_late or len(failed) == len(tried)):
            return True
        return is_late and any(entry.finished for entry in tried)
