"""Report the training progress of a fit: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.fit.loop import Epoch


class Progress(Protocol):
    """Receiver of a run's progress."""

    def start(self, epochs: int) -> None:
        """Begin a run of at most `epochs` epochs."""

    def epoch(self, line: Epoch) -> None:
        """Report a finished epoch."""

    def finish(self, best_epoch: int | None) -> None:
        """End the run; it failed if `best_epoch` is None."""


class Lines:
    """Progress as one plain line for each epoch."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.epochs = 0

    def start(self, epochs: int) -> None:
        """Keep the number of epochs for the lines."""
        self.epochs = epochs

    def epoch(self, line: Epoch) -> None:
        """Print the epoch's line."""
        auc = "" if line["valid_auc"] is None else f"  valid auc {line['valid_auc']:.4f}"
        self._write(
            f"epoch {line['epoch']}/{self.epochs}  train logloss {line['train_logloss']:.4f}  valid logloss "
            f"{line['valid_logloss']:.4f}{auc}  {line['seconds']:.1f} s"
        )

    def finish(self, best_epoch: int | None) -> None:
        """Print the best epoch."""
        if best_epoch is not None:
            self._write(f"best epoch {best_epoch}")

    def _write(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class TerminalBar:
    """Progress bar with one step for each epoch, the validation logloss and the remaining time."""

    def __init__(self, stream: TextIO) -> None:
        self.bar = Bar(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[logloss]}"),
            TimeRemainingColumn(),
            console=Console(file=stream),
        )
        self.task = self.bar.add_task("training", logloss="starting the workers", total=None)

    def start(self, epochs: int) -> None:
        """Draw the bar."""
        self.bar.update(self.task, total=epochs)
        self.bar.start()

    def epoch(self, line: Epoch) -> None:
        """Advance the bar."""
        text = f"valid logloss {line['valid_logloss']:.4f}"
        self.bar.update(self.task, completed=line["epoch"], logloss=text)

    def finish(self, best_epoch: int | None) -> None:
        """Leave the bar on the screen and release the terminal."""
        self.bar.update(self.task, logloss="failed" if best_epoch is None else f"best epoch {best_epoch}")
        self.bar.stop()


def progress_on(stream: TextIO = sys.stderr) -> Progress:
    """Return a bar for a terminal, plain lines for any other stream."""
    return TerminalBar(stream) if stream.isatty() else Lines(stream)
