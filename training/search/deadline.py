"""The deadline of a search's trials: what is left of the budget beside the end."""

from __future__ import annotations

from statistics import median

from training.loop import FitConfig
from training.search.clock import Clock
from training.search.ending import Forecast, row_s, work
from training.search.leaderboard import Leaderboard
from training.search.progress import SearchProgress

FAILURES = 5
"""So many failed trials and no other end a search."""


class Deadline:
    """Ends the trials when what is left of the budget is needed to train and measure the winner."""

    def __init__(
        self,
        clock: Clock,
        board: Leaderboard,
        forecast: Forecast,
        *,
        num_train: int,
        num_valid: int,
        most_us: float | None,
        most_trials: int | None = None,
        progress: SearchProgress,
    ) -> None:
        """`num_train` and `num_valid` are the rows of a trial; `most_trials` end the search before its time."""
        self._clock, self._board, self._forecast = clock, board, forecast
        self._num_train, self._num_valid = num_train, num_valid
        self._most_us, self._most_trials, self._progress = most_us, most_trials, progress
        # Of what is left beside reading and rivals, half may go to the end: the other half chooses what it makes.
        self._most_end_s = max(clock.budget_s - clock.running(), 0.0) / 2

    def left_s(self) -> float:
        """Seconds that are left for trials."""
        winner = self._board.winner(self._most_us)
        if winner is None:
            return self._clock.left()
        ending = self._forecast.within(winner, self._most_end_s)
        return self._clock.left() - self._forecast.seconds(winner, ending)

    def in_time(self, config: FitConfig) -> bool:
        """Whether a trial that begins now would end in time, by what those before it took; the first always."""
        paces = [row_s(entry) for entry in self._board.tried() if entry.rows]
        if self._board.winner(self._most_us) is None or not paces:
            return True
        return work(config.epochs, self._num_train, self._num_valid) * median(paces) <= self.left_s()

    def is_over(self) -> bool:
        """Whether the time is up; a search in which no trial has finished goes on until one has, or enough failed."""
        self._progress.elapsed(self._clock.spent())
        tried, is_late = self._board.tried(), self.left_s() <= 0
        if self._most_trials is not None and len(tried) >= self._most_trials:
            is_late = True
        failed = [entry for entry in tried if entry.failed]
        if len(failed) >= FAILURES and (is_late or len(failed) == len(tried)):
            return True
        return is_late and any(entry.finished for entry in tried)
