"""The time budget of a search: what is spent, and a forecast of what the final training needs."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_file
from serve.storage.atomic_files import exclusive, write_whole
from training.evaluation.importance import MOST_ROWS
from training.search.leaderboard import BoardEntry, Leaderboard
from training.search.space import Space

# The newest 10 % of the winner's rows also serve as validation rows, which monitor its training.
MONITORED_SHARE = 0.1
# Scoring a validation row takes a quarter of the time that training on a row takes.
VALIDATION_ROW_COST = 0.25
# The forecast is raised by 10 %, because the final training never runs as smoothly as a trial.
MARGIN = 1.1
# How long a training worker takes to start (process, torch, Ray's bookkeeping) on an idle machine.
WORKER_START_S = 7.0
# The fixed part of the evaluation, in which the report's figures are computed and written.
EVALUATION_S = 5.0
# Evaluation time per row of the feature importance, which dominates the part that grows with rows.
IMPORTANCE_US = 250.0
FILE = "search.json"


class Clock(contextlib.AbstractContextManager["Clock"]):
    """The time that all calls of one search have spent. It is stored in the search's folder.

    As a context manager, it holds an exclusive lock on the folder.
    """

    def __init__(self, out: Path, budget_s: float) -> None:
        """Raise TabrankError if a search runs in `out`, or if `out` exists and holds no search."""
        self.out, self.budget_s = out, budget_s
        self._started_s = time.monotonic()
        self._state: dict[str, Any] = {"spent_s": 0.0}
        refuse_file(out)
        with contextlib.ExitStack() as held:
            # The lock lies beside the folder, because the folder itself is replaced.
            busy = f"{out}: a search runs there already; wait or name another folder"
            lock = out.with_name(f".{out.name}.lock")
            held.enter_context(exclusive(lock, busy))
            held.callback(lock.unlink, missing_ok=True)
            path = out / FILE
            if path.exists():
                try:
                    self._state = json.loads(path.read_text())
                except (OSError, ValueError) as error:
                    raise TabrankError(f"{path}: cannot be read: {error}; remove {out}") from error
            elif out.exists() and any(out.iterdir()):
                raise TabrankError(f"{out}: exists and holds no search; name another folder or remove it")
            # Nothing was raised: hold the lock until `__exit__`.
            self._held = held.pop_all()

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def claim(self, identity: str, *, restart: bool) -> None:
        """Claim the folder for the search with this identity.

        With `restart`, the files of another search, or of a search that has ended, are removed
        first.

        Raises:
            TabrankError: the folder belongs to another search, and `restart` is false.
        """
        other = self._state.get("identity", identity) != identity
        if restart and (other or self._state.get("over")):
            aside = self.out.with_name(f".{self.out.name}.old")
            shutil.rmtree(aside, ignore_errors=True)
            # Rename the folder before deleting it, so that a kill never leaves half of a search.
            self.out.rename(aside)
            shutil.rmtree(aside)
            self._state = {"spent_s": 0.0}
        elif other:
            raise TabrankError(
                f"{self.out}: holds a search over another log, surface or --days, or of another version; "
                "name another folder or remove it"
            )
        self._state["identity"] = identity
        self.out.mkdir(parents=True, exist_ok=True)
        self.save(over=False)

    def setdefault(self, name: str, value: Any) -> Any:
        """Store a value if this search has none of this name, and return the stored value."""
        kept = self._state.setdefault(name, value)
        self.save(over=False)
        return kept

    def increment(self, name: str) -> int:
        """Increment the stored value of this name, which is 0 at first, and return it."""
        number: int = self._state.get(name, 0) + 1
        self._state[name] = number
        self.save(over=False)
        return number

    def spent(self) -> float:
        """Return the seconds that all calls have spent, including this one."""
        return float(self._state["spent_s"]) + self.running()

    def running(self) -> float:
        """Return the seconds since this call began."""
        return time.monotonic() - self._started_s

    def left(self) -> float:
        """Return the seconds left of the budget. They are negative if it is exceeded."""
        return self.budget_s - self.spent()

    def save(self, *, over: bool) -> None:
        """Write the state from which a killed search resumes, and whether the search is over."""
        state = {**self._state, "spent_s": self.spent(), "over": over}
        write_whole(self.out / FILE, json.dumps(state).encode())


@dataclass(frozen=True)
class FinalTraining:
    """The size of the winner's final training.

    First `num_teachers` networks like the winner are trained, which teach it. Then the winner
    trains for `epochs` epochs. All of them use the newest `num_rows` rows.
    """

    num_teachers: int
    epochs: int
    num_rows: int

    def describe_shortfall(self, whole: FinalTraining) -> str:
        """Describe which part of the full training the budget does not allow."""
        if self.epochs == whole.epochs and self.num_rows == whole.num_rows:
            return (
                f"the budget leaves time for {self.num_teachers} of {whole.num_teachers} networks that teach"
            )
        what = f"{self.epochs} of {whole.epochs} epochs on {self.num_rows:,} of {whole.num_rows:,} rows"
        none = " and for no networks that teach" if whole.num_teachers else ""
        return f"the budget leaves the winner time for {what}{none}"


def work(epochs: int, num_train: int, num_valid: int) -> float:
    """Return the row passes of a training, in which a validation row counts VALIDATION_ROW_COST."""
    return epochs * (num_train + VALIDATION_ROW_COST * num_valid)


def row_s(entry: BoardEntry) -> float:
    """Return the seconds of training per row pass, or 0 if they were not measured."""
    return entry.seconds / entry.rows if entry.rows else 0.0


@dataclass
class Forecast:
    """Forecast of how long the end of a search takes: teachers, training, rivals and evaluation.

    The winner trains on `num_rows` rows and is evaluated on `num_test` rows. Ray trains
    `num_at_once` networks in parallel.
    """

    board: Leaderboard
    num_rows: int
    num_test: int
    num_teachers: int
    num_at_once: int
    start_s: float = WORKER_START_S

    def started(self, seconds: float) -> None:
        """Record how long the first worker took to start. On a busy machine, all start slowly."""
        self.start_s = max(WORKER_START_S, seconds)

    def whole(self, winner: BoardEntry) -> FinalTraining:
        """Return the full final training. The search space of `num_rows` rows bounds its epochs."""
        most = Space(self.num_rows).distributions["epochs"].high  # type: ignore[attr-defined]
        return FinalTraining(self.num_teachers, min(winner.point["epochs"], most), self.num_rows)

    def seconds(self, winner: BoardEntry, training: FinalTraining) -> float:
        """Return the seconds for teachers, final training, rivals and evaluation."""
        rounds = 1 + -(-training.num_teachers // self.num_at_once)
        rivals = sum(row_s(entry) for entry in self.board.entries if entry.kind != "tabnet")
        trained = rounds * (self.start_s + _row_passes(training) * row_s(winner)) + training.num_rows * rivals
        return MARGIN * trained + EVALUATION_S + IMPORTANCE_US / 1e6 * min(self.num_test, MOST_ROWS)

    def within(self, winner: BoardEntry, seconds: float) -> FinalTraining:
        """Return the largest final training that fits into these seconds, or else the smallest."""
        whole = self.whole(winner)
        # With less training than in its trial, it would not be the network that won.
        least = min(winner.rows, _row_passes(whole))
        trainings = [training for training in _smaller(whole) if _row_passes(training) >= least]
        fitting = (training for training in trainings if self.seconds(winner, training) <= seconds)
        return next(fitting, trainings[-1])


def _row_passes(training: FinalTraining) -> float:
    return work(training.epochs, training.num_rows, int(MONITORED_SHARE * training.num_rows))


def _smaller(whole: FinalTraining) -> Iterator[FinalTraining]:
    """Yield ever smaller trainings: first with fewer teachers, then epochs, and then rows."""
    for num_teachers in range(whole.num_teachers, -1, -1):
        yield replace(whole, num_teachers=num_teachers)
    for epochs in range(whole.epochs - 1, 0, -1):
        yield FinalTraining(0, epochs, whole.num_rows)
    for halvings in range(1, whole.num_rows.bit_length()):
        yield FinalTraining(0, 1, whole.num_rows >> halvings)
