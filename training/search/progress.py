"""What a search says while it goes on: a bar with the best so far on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.fit.loop import Epoch
from training.search.leaderboard import Entry


class SearchProgress:
    """Told of each step and trial; `stream` is stderr, so that stdout stays free for the answer."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: Bar | None = None
        self._best = ""
        self._epochs = 0
        self._shared = 0.0

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def share(self, share: float) -> None:
        """How much of the features is computed; said every quarter."""
        if share - self._shared >= 0.25:
            self._shared = share
            self.say(f"features {share:.0%}")

    def start(self, epochs: int) -> None:
        """The winner's training begins."""
        self._epochs = epochs

    def epoch(self, line: Epoch) -> None:
        """An epoch of it is done."""
        self.say(f"epoch {line['epoch']}/{self._epochs}  train logloss {line['train_logloss']:.4f}")

    def finish(self, best_epoch: int | None) -> None:
        """It is trained."""

    def searching(self, budget_s: float) -> None:
        """The trials begin; `elapsed` moves the bar to `budget_s`."""
        if self._stream.isatty():
            columns = (TextColumn("search"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            console = Console(file=self._stream)
            self._bar = Bar(*columns, TextColumn("{task.fields[best]}"), console=console)
            self._bar.add_task("search", total=budget_s, best="")
            self._bar.start()

    def elapsed(self, seconds: float) -> None:
        """So much of the budget is spent."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=seconds, best=self._best)

    def trial(self, entry: Entry, best: Entry | None, left_s: float) -> None:
        """A trial has ended."""
        point = entry.point
        what = f"{point['width']} wide, {point['n_steps']} steps, {point['mask_type']}" if point else ""
        if entry.valid_logloss is None:
            how = f"failed: {entry.failed}"
        else:
            how = f"logloss {entry.valid_logloss:.4f}"
            how += "" if entry.finished else f" at {entry.share:.0%} of its epochs, stopped"
        if best is not None:
            self._best = f"best {best.valid_logloss:.4f} ({best.name})"
        line = f"{entry.name}: {what}, {entry.us_per_candidate:.1f} µs, {how}"
        line += f"; {self._best}" if self._best else ""
        self.say(f"{line}; {max(left_s, 0) / 60:.1f} min left")

    def searched(self) -> None:
        """The trials are over; gives the terminal back."""
        if self._bar:
            self._bar.stop()
            self._bar = None
