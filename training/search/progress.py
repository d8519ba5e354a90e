"""Progress of a search on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import TextIO

from rich.progress import TaskProgressColumn

from training.fit.loop import Epoch
from training.fit.progress import Progress
from training.search.leaderboard import BoardEntry


class SearchProgress(Progress):
    """Printer of a search's steps and trials, and of the epochs of the winner's training."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._best = ""

    def start(self, epochs: int) -> None:
        """Start the winner's training."""
        self._epochs = epochs

    def epoch(self, line: Epoch) -> None:
        """Print an epoch of the winner's training."""
        self.report(f"epoch {line['epoch']}/{self._epochs}  train logloss {line['train_logloss']:.4f}")

    def finish(self, best_epoch: int | None) -> None:
        """End the winner's training."""

    def searching(self, budget_s: float) -> None:
        """Start the trials; on a terminal, show a bar of `budget_s` that `elapsed` moves."""
        self._open("search", budget_s, TaskProgressColumn())

    def elapsed(self, seconds: float) -> None:
        """Update the bar with the seconds spent."""
        self._update(self._best, seconds)

    def trial(self, entry: BoardEntry, best: BoardEntry | None, left_s: float) -> None:
        """Print the result of a trial and the best one so far."""
        point = entry.point
        what = f"{point['width']} wide, {point['n_steps']} steps, {point['mask_type']}" if point else ""
        if entry.valid_logloss is None:
            how = f"failed: {entry.failed}"
        else:
            how = f"logloss {entry.valid_logloss:.4f}"
            how += "" if entry.finished else f" at {entry.share:.0%} of its epochs, stopped"
        if best is not None:
            self._best = f"best {best.valid_logloss:.4f} ({best.name})"
        found = f"{entry.name}: {what}, {entry.us_per_candidate:.1f} µs, {how}"
        left = f"{max(left_s, 0) / 60:.1f} min left"
        self.report("; ".join(filter(None, (found, self._best, left))))
