"""The end of a search: what it takes, and the most of it that a time allows.

The same estimate says when the trials must end and how much of the end is then done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from training.evaluation.importance import MOST_ROWS
from training.search.leaderboard import Entry, Leaderboard
from training.search.space import Space

WATCHED = 0.1
"""Of the rows that the winner is trained on, the last share shows that it goes on well."""
SCORED = 0.25
"""What a row that is only scored takes of the time of one that is trained on."""
SPARE = 1.1
"""Nothing goes as smoothly as it did in a trial."""
START_S = 7.0
"""Of a worker that trains, its process, torch and Ray's books, on a machine that is idle."""
MEASURES_S = 5.0
"""Of the measures, whatever the rows: the report's figures, writing."""
MEASURE_US = 250.0
"""Of the measures, a row by which the features' importance is taken: nearly all of what grows with the rows."""


@dataclass(frozen=True)
class Ending:
    """How the winner is made: in `epochs` passes over the newest `num_rows` rows, after `num_teachers` like it."""

    num_teachers: int
    epochs: int
    num_rows: int

    def falls_short_of(self, whole: Ending) -> str:
        """What of the whole end there is no time for."""
        if self.epochs == whole.epochs and self.num_rows == whole.num_rows:
            return f"the budget leaves time for {self.num_teachers} of {whole.num_teachers} teachers"
        what = f"{self.epochs} of {whole.epochs} epochs on {self.num_rows:,} of {whole.num_rows:,} rows"
        return f"the budget leaves the winner time for {what}" + (
            " and for no teachers" if whole.num_teachers else ""
        )


def work(epochs: int, num_train: int, num_valid: int) -> float:
    """Rows that a run is trained on, each as often as it is seen; those that only validate count for less."""
    return epochs * (num_train + SCORED * num_valid)


def row_s(entry: Entry) -> float:
    """Seconds a row of an entry's training; 0 where nothing was measured."""
    return entry.seconds / entry.rows if entry.rows else 0.0


@dataclass
class Forecast:
    """Of the end of a search in which the winner is trained on `num_rows` rows and measured on `num_test`."""

    board: Leaderboard
    num_rows: int
    num_test: int
    num_teachers: int
    num_at_once: int
    """Networks that are trained side by side."""
    start_s: float = START_S

    def started(self, seconds: float) -> None:
        """The first worker took so long to start: on a busy machine the later ones do too."""
        self.start_s = max(START_S, seconds)

    def whole(self, winner: Entry) -> Ending:
        """The end with all that was asked for; many rows need no more epochs than their space has."""
        most = Space(self.num_rows).distributions["epochs"].high  # type: ignore[attr-defined]
        return Ending(self.num_teachers, min(winner.point["epochs"], most), self.num_rows)

    def seconds(self, winner: Entry, ending: Ending) -> float:
        """What an end takes: teachers, the winner itself, its rivals and the measures."""
        rounds = 1 + -(-ending.num_teachers // self.num_at_once)
        rivals = sum(row_s(entry) for entry in self.board.entries if entry.kind != "tabnet")
        trained = rounds * (self.start_s + _seen(ending) * row_s(winner)) + ending.num_rows * rivals
        return SPARE * trained + MEASURES_S + MEASURE_US / 1e6 * min(self.num_test, MOST_ROWS)

    def within(self, winner: Entry, seconds: float) -> Ending:
        """The most that so many seconds allow; the least that there is where they allow nothing."""
        whole = self.whole(winner)
        # Trained on less than its trial was, it would be another network than the one that won.
        least = min(winner.rows, _seen(whole))
        endings = [ending for ending in _ever_less(whole) if _seen(ending) >= least]
        fitting = (ending for ending in endings if self.seconds(winner, ending) <= seconds)
        return next(fitting, endings[-1])


def _seen(ending: Ending) -> float:
    return work(ending.epochs, ending.num_rows, int(WATCHED * ending.num_rows))


def _ever_less(whole: Ending) -> Iterator[Ending]:
    """Fewer teachers first, then fewer epochs, then the newest rows alone."""
    for num_teachers in range(whole.num_teachers, -1, -1):
        yield replace(whole, num_teachers=num_teachers)
    for epochs in range(whole.epochs - 1, 0, -1):
        yield Ending(0, epochs, whole.num_rows)
    num_rows = whole.num_rows // 2
    while num_rows > 0:
        yield Ending(0, 1, num_rows)
        num_rows //= 2
