"""What a benchmark works on: a log, a model and a store, made once by the project's own commands."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.commands import run_command
from loadtest.errors import LoadtestError

ROWS, EPOCHS = 300_000, 2  # a model's speed does not depend on how long it was trained
VIEWERS = 20_000  # many more than the rows ask for, so that reading one is a read and not a cache
STORE_FORMAT = "3"  # the embedded store refuses another; a test holds this one to the store's own

Say = Callable[[str], None]
Run = Callable[..., object]


@dataclass(frozen=True)
class Workspace:
    """A folder of benchmarks. What is in `data` is whole; all else belongs to the benchmark that runs."""

    path: Path

    @property
    def data(self) -> Path:
        """Log, model, published models and store; its name says what it was made of."""
        return self.path / f"spaces-{ROWS}x{VIEWERS}-store{STORE_FORMAT}"

    @property
    def log(self) -> Path:
        """The simulated log, whose viewers and candidates are asked for."""
        return self.data / "log"

    @property
    def id(self) -> str:
        """A short name for processes and sockets."""
        return hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:8]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, made where it is missing: two benchmarks at once would measure each other.

        Raises:
            LoadtestError: if another benchmark holds it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("w")
        except OSError as error:
            raise LoadtestError(f"--work {self.path}: cannot be written to ({error.strerror})") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LoadtestError(
                    f"--work {self.path}: another benchmark is at work there; wait for it, or name another folder"
                ) from None
            yield

    def prepare(self, say: Say, run: Run = run_command) -> None:
        """Make what is missing. It gets its name when it is whole, so nothing half-made is ever used."""
        if self.data.exists():
            say(f"using the log, model and store in {self.data}")
            return
        draft = self.path / f".{self.data.name}.partial"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        log, model, talk = str(draft / "log"), str(draft / "model"), self.path / "prepare.log"
        say(f"making a log of {ROWS:,} shown rooms and {VIEWERS:,} viewers in {self.data}")
        size = ("--rows", str(ROWS), "--viewers", str(VIEWERS), "--days", "1")
        # the log ends now: the rooms that are live at its end are live for the service
        run("training", "simulate", "--out", log, *size, "--end", "now", log=talk)
        say("fitting a model to it")
        fit = ("--surface", "spaces", "--log", log, "--out", model, "--epochs", str(EPOCHS))
        run("training", "fit", *fit, log=talk)
        say("publishing the model, filling the store")
        run("training", "publish", "--model", model, "--models", str(draft / "models"), log=talk)
        run("serve", "load", "--log", log, "--store", f"lmdb:{(draft / 'store').resolve()}", log=talk)
        draft.rename(self.data)
