"""The time budget of a search: what it may still spend, and what its parts will take."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import IO, Any, TypeVar

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_file
from serve.log.atomic_files import write_whole
from training.evaluation.importance import MOST_ROWS
from training.fit.loop import FitConfig
from training.search.leaderboard import Entry, Leaderboard
from training.search.progress import SearchProgress
from training.search.space import Space

FAILURES = 5
"""So many failed trials and no other end a search."""
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
FILE = "search.json"
Plain = TypeVar("Plain", bound=int | str | dict[str, int] | None)


class Clock:
    """How much of the budget is spent, over all calls; kept in the search's folder with what is searched.

    The folder is this search's alone for as long as the `with` block runs.
    """

    def __init__(self, out: Path, budget_s: float) -> None:
        """Raises TabrankError where a search runs in `out`, or `out` is there and holds none."""
        self.out, self.budget_s = out, budget_s
        self._begun = time.monotonic()
        self._state: dict[str, Any] = {"spent_s": 0.0}
        refuse_file(out)
        self._lock = _locked(out)
        try:
            self._read()
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Clock:
        return self

    def __exit__(self, *_: object) -> None:
        self._unlock()

    def _unlock(self) -> None:
        Path(self._lock.name).unlink(missing_ok=True)
        self._lock.close()

    def _read(self) -> None:
        if (self.out / FILE).exists():
            try:
                self._state = json.loads((self.out / FILE).read_text())
            except (OSError, ValueError) as error:
                raise TabrankError(
                    f"{self.out / FILE}: cannot be read: {error}; remove {self.out}"
                ) from error
        elif self.out.exists() and any(self.out.iterdir()):
            raise TabrankError(
                f"{self.out}: exists already and holds no search; name another folder or remove it first"
            )

    def claim(self, identity: str, *, anew: bool) -> None:
        """Makes the folder that of the search of this identity.

        With `anew`, what is there of another search, or of one that is over, is removed.

        Raises:
            TabrankError: another search's folder, without `anew`.
        """
        other = self._state.get("identity", identity) != identity
        if anew and (other or self._state.get("over")):
            aside = self.out.with_name(f".{self.out.name}.old")
            shutil.rmtree(aside, ignore_errors=True)
            self.out.rename(aside)  # at once, so that a kill leaves no half of a search
            shutil.rmtree(aside)
            self._state = {"spent_s": 0.0}
        elif other:
            raise TabrankError(
                f"{self.out}: holds a search over another log, surface, seed or days; name another folder"
            )
        self._state["identity"] = identity
        self.out.mkdir(parents=True, exist_ok=True)
        self.save(over=False)

    def keep(self, name: str, value: Plain) -> Plain:
        """What the first call of this search gave under this name, however later ones differ."""
        kept: Plain = self._state.setdefault(name, value)
        self.save(over=False)
        return kept

    def count(self, name: str) -> int:
        """How often this search has counted under this name, this time included."""
        self._state[name] = self.counted(name) + 1
        self.save(over=False)
        return self.counted(name)

    def counted(self, name: str) -> int:
        """How often it has."""
        return int(self._state.get(name, 0))

    def spent(self) -> float:
        """Seconds, those of earlier calls included."""
        return float(self._state["spent_s"]) + self.running()

    def running(self) -> float:
        """Seconds of this call."""
        return time.monotonic() - self._begun

    def left(self) -> float:
        """Seconds of the budget; below 0 where more is spent."""
        return self.budget_s - self.spent()

    def save(self, *, over: bool) -> None:
        """Keeps what is spent, so that a killed search goes on with the rest, and whether the search is over."""
        state = {**self._state, "spent_s": self.spent(), "over": over}
        write_whole(self.out / FILE, json.dumps(state).encode())


def _locked(out: Path) -> IO[str]:
    """The lock of a search's folder, beside it, since the folder itself is replaced; TabrankError if it is held."""
    path = out.with_name(f".{out.name}.lock")
    while True:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except OSError as error:
            raise TabrankError(f"{out}: cannot be written: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise TabrankError(f"{out}: a search runs there already; wait for it or name another") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        lock.close()  # whoever held it has just removed it


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
