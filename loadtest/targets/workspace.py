"""Workspace of a benchmark: a log, a model and a store, which the project's commands make once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from loadtest.commands import run_command
from serve.contract.commands import Parts
from serve.contract.rankings import MAX_CANDIDATES
from serve.storage.atomic_files import draft_of, exclusive

# Rows of the log, and epochs of the fit. Two suffice, because the speed of a model does not depend
# on how long it was fitted.
ROWS, EPOCHS = 300_000, 2
# There are many viewers, so that most rankings read their viewer from the store and not from a
# cache.
VIEWERS = 20_000
# Format of the embedded store, which rejects files of other formats. A test compares this number
# with the store's own.
STORE_FORMAT = "4"

Progress = Callable[[str], None]
RunCommand = Callable[..., object]


@dataclass(frozen=True)
class Workspace:
    """Folder of benchmarks.

    Once `data` exists it is complete. Everything else in the folder belongs to the benchmark that
    runs.
    """

    path: Path

    @property
    def data(self) -> Path:
        """Return the folder of the log, the models and the store, named by their parameters."""
        return self.path / f"spaces-{ROWS}x{VIEWERS}x{MAX_CANDIDATES}-store{STORE_FORMAT}"

    @property
    def log(self) -> Path:
        """Return the simulated log, which supplies viewers and candidates."""
        return self.data / "log"

    @property
    def id(self) -> str:
        """Return a short name, the same for the same path, that marks the processes of a run."""
        return hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:8]

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder's lock, because two benchmarks at once would disturb each other.

        The folder is created if it is missing.

        Raises:
            TabrankError: if another benchmark holds the lock, or the folder cannot be created.
        """
        busy = f"--work {self.path}: another benchmark uses it; wait for its end, or name another folder"
        return exclusive(self.path / "lock", busy)

    def prepare(self, emit: Progress, run: RunCommand = run_command) -> None:
        """Make `data` if it is missing: in a draft folder, which is renamed once it is complete.

        `emit` gets lines about the progress.
        """
        if self.data.exists():
            emit(f"using the log, model and store in {self.data}")
            return
        with draft_of(self.data) as draft:
            parts = Parts(emit)
            log, model, output = str(draft / "log"), str(draft / "model"), self.path / "prepare.log"
            parts.begin(f"making a log of {ROWS:,} shown rooms and {VIEWERS:,} viewers in {self.data}")
            size = ("--rows", str(ROWS), "--viewers", str(VIEWERS), "--days", "1")
            # The log ends now, so that rooms that are live at its end are live for the service too.
            run("training", "simulate", "--out", log, *size, "--end", "now", log=output)
            _keep_live(draft / "log" / "candidates.parquet", MAX_CANDIDATES)
            parts.begin("fitting a model")
            fit = ("--surface", "spaces", "--log", log, "--out", model, "--epochs", str(EPOCHS))
            run("training", "fit", *fit, log=output)
            parts.begin("publishing the model and filling the store")
            run("training", "publish", "--model", model, "--models", str(draft / "models"), log=output)
            run("serve", "load", "--log", log, "--store", f"lmdb:{(draft / 'store').resolve()}", log=output)
            parts.end()


def _keep_live(file: Path, num: int) -> None:
    """Drop the latest ends from the candidates of a log, so that at least `num` are live.

    This is needed because the model scores no ended candidate, and only about 300 of the simulated
    ones are live at a time.
    """
    rows = pq.read_table(file)
    ends = np.flatnonzero(rows["ends_ms"].is_valid())
    num_missing = max(0, num - len(rows["id"].unique()) + len(ends))
    pq.write_table(rows.take(np.delete(np.arange(len(rows)), ends[len(ends) - num_missing :])), file)
