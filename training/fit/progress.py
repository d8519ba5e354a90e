"""Report the progress of a fit, on a terminal or in lines."""

from __future__ import annotations

import sys
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.fit.loop import Epoch


class Progress(Protocol):
    """Told of a run as it goes."""

    def start(self, epochs: int) -> None:
        """A run of at most so many epochs begins."""

    def epoch(self, line: Epoch) -> None:
        """An epoch is done."""

    def finish(self, best_epoch: int | None) -> None:
        """The run is over; it failed where it has no best epoch."""


class Lines:
    """One plain line per epoch."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.epochs = 0

    def start(self, epochs: int) -> None:
        """Remembers how many epochs there may be."""
        self.epochs = epochs

    def epoch(self, line: Epoch) -> None:
        """Writes the epoch's line."""
        auc = "" if line["valid_auc"] is None else f"  valid auc {line['valid_auc']:.4f}"
        self._write(
            f"epoch {line['epoch']}/{self.epochs}  train logloss {line['train_logloss']:.4f}  valid logloss "
            f"{line['valid_logloss']:.4f}{auc}  {line['seconds']:.1f} s"
        )

    def finish(self, best_epoch: int | None) -> None:
        """Says which epoch's weights were best."""
        if best_epoch is not None:
            self._write(f"best epoch {best_epoch}")

    def _write(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class TerminalBar:
    """A bar that moves with each epoch, with the validation logloss and the time that is left."""

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
        """Draws the bar."""
        self.bar.update(self.task, total=epochs)
        self.bar.start()

    def epoch(self, line: Epoch) -> None:
        """Moves the bar."""
        text = f"valid logloss {line['valid_logloss']:.4f}"
        self.bar.update(self.task, completed=line["epoch"], logloss=text)

    def finish(self, best_epoch: int | None) -> None:
        """Leaves the bar as it is, and gives the terminal back."""
        self.bar.update(self.task, logloss="failed" if best_epoch is None else f"best epoch {best_epoch}")
        self.bar.stop()


def progress_on(stream: TextIO = sys.stderr) -> Progress:
    """A bar on a terminal, plain lines elsewhere."""
    return TerminalBar(stream) if stream.isatty() else Lines(stream)
