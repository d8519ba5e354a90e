"""Report the progress of a search on stderr, in lines."""

from __future__ import annotations

from training.fit.loop import Epoch
from training.fit.progress import Progress
from training.search.leaderboard import BoardEntry


class SearchProgress(Progress):
    """Printer of a search's steps and trials, and of the epochs of the winner's training."""

    def epoch(self, line: Epoch) -> None:
        """Report an epoch of the winner's training, whose validation rows are training rows too."""
        self.report(f"epoch {line['epoch']}/{self._epochs}  train logloss {line['train_logloss']:.4f}")

    def finish(self, best_epoch: int) -> None:
        """Report nothing: the last epoch counts."""

    def trial(self, entry: BoardEntry, best: BoardEntry | None, left_s: float) -> None:
        """Report the result of a trial, the best one so far and the time left for trials."""
        point = entry.point
        what = f"{point['width']} wide, {point['n_steps']} steps, {point['mask_type']}"
        if entry.failed:
            how = f"failed: {entry.failed}"
        else:
            how = f"logloss {entry.logloss:.4f}"
            how += "" if entry.finished else f" at {entry.share:.0%} of its epochs, stopped"
        parts = [f"{entry.name}: {what}, {entry.us_per_candidate:.1f} µs, {how}"]
        parts += [f"best {best.logloss:.4f} ({best.name})"] if best else []
        self.report("; ".join([*parts, f"{max(left_s, 0) / 60:.1f} min left"]))
