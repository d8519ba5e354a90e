"""Report the progress of a training: a line for each epoch."""

from __future__ import annotations

import sys
from typing import TextIO

from training.fit.loop import Epoch


class Progress:
    """Printer of a training's epochs; `stream` defaults to stderr: stdout holds the answer."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._epochs = 0

    def report(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._stream, flush=True)

    def start(self, epochs: int) -> None:
        """Begin a run of at most `epochs` epochs."""
        self._epochs = epochs

    def epoch(self, line: Epoch) -> None:
        """Report a finished epoch."""
        auc = "" if line["valid_auc"] is None else f"  valid auc {line['valid_auc']:.4f}"
        self.report(
            f"epoch {line['epoch']}/{self._epochs}  train logloss {line['train_logloss']:.4f}  "
            f"valid logloss {line['valid_logloss']:.4f}{auc}  {line['seconds']:.1f} s"
        )

    def finish(self, best_epoch: int) -> None:
        """Report the best epoch of a run that ended."""
        self.report(f"best epoch {best_epoch}")
