"""Report the progress of a training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.fit.loop import Epoch


class Progress:
    """Printer of a training's epochs; `stream` defaults to stderr: stdout holds the answer."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr)
        self._bar: Bar | None = None
        self._epochs = 0

    def report(self, text: str) -> None:
        """Print a line."""
        # Above the bar, if there is one.
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def start(self, epochs: int) -> None:
        """Begin a run of at most `epochs` epochs."""
        self._epochs = epochs
        self._open("training", epochs, MofNCompleteColumn(), "starting the workers")

    def epoch(self, line: Epoch) -> None:
        """Report a finished epoch."""
        logloss = f"valid logloss {line['valid_logloss']:.4f}"
        if self._bar:
            self._update(logloss, line["epoch"])
            return
        auc = "" if line["valid_auc"] is None else f"  valid auc {line['valid_auc']:.4f}"
        self.report(
            f"epoch {line['epoch']}/{self._epochs}  train logloss {line['train_logloss']:.4f}  {logloss}{auc}  "
            f"{line['seconds']:.1f} s"
        )

    def finish(self, best_epoch: int | None) -> None:
        """End the run; it failed if `best_epoch` is None."""
        if self._bar:
            self._update("failed" if best_epoch is None else f"best epoch {best_epoch}")
        elif best_epoch is not None:
            self.report(f"best epoch {best_epoch}")
        self.close()

    def _open(self, name: str, total: float, progress: ProgressColumn, text: str = "") -> None:
        """Show a bar if the stream is a terminal."""
        if self._console.is_terminal:
            columns = (TextColumn(name), BarColumn(), progress, TimeRemainingColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[text]}"), console=self._console)
            self._bar.add_task(name, total=total, text=text)
            self._bar.start()

    def _update(self, text: str, completed: float | None = None) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=completed, text=text)

    def close(self) -> None:
        """Leave the bar, if any, on the screen and release the terminal."""
        if self._bar:
            self._bar.stop()
            self._bar = None
