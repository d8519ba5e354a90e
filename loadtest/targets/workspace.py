"""Workspace of a benchmark: a log, a model and a store, made once with the project's commands."""

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

# A model's speed does not depend on the number of epochs.
ROWS, EPOCHS = 300_000, 2
# Many more viewers than the rows need, so that reading one is a read and not a cache hit.
VIEWERS = 20_000
# The embedded store rejects other formats; a test compares this number with the store's own.
STORE_FORMAT = "4"

Progress = Callable[[str], None]
RunCommand = Callable[..., object]


@dataclass(frozen=True)
class Workspace:
    """Folder of benchmarks. `data` is complete; the rest belongs to the running benchmark."""

    path: Path

    @property
    def data(self) -> Path:
        """Return the folder of log, models and store; its name contains their parameters."""
        return self.path / f"spaces-{ROWS}x{VIEWERS}x{MAX_CANDIDATES}-store{STORE_FORMAT}"

    @property
    def log(self) -> Path:
        """Return the simulated log, which supplies viewers and candidates."""
        return self.data / "log"

    @property
    def id(self) -> str:
        """Return a short name for processes and sockets."""
        return hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:8]

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder's lock, as two concurrent benchmarks would disturb each other.

        The folder is created if it is missing.

        Raises:
            TabrankError: if another benchmark holds it, or it cannot be created.
        """
        busy = f"--work {self.path}: another benchmark uses it; wait for its end, or name another folder"
        return exclusive(self.path / "lock", busy)

    def prepare(self, emit: Progress, run: RunCommand = run_command) -> None:
        """Make missing data in a draft folder, and rename it once it is complete."""
        if self.data.exists():
            emit(f"using the log, model and store in {self.data}")
            return
        with draft_of(self.data) as draft:
            parts = Parts(emit)
            log, model, output = str(draft / "log"), str(draft / "model"), self.path / "prepare.log"
            parts.begin(f"making a log of {ROWS:,} shown rooms and {VIEWERS:,} viewers in {self.data}")
            size = ("--rows", str(ROWS), "--viewers", str(VIEWERS), "--days", "1")
            # The log ends now, so that the rooms that are live at its end are live for the service.
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

    The model scores no ended candidate, and of the simulated ones some 300 are live at a time.
    """
    rows = pq.read_table(file)
    ends = np.flatnonzero(rows["ends_ms"].is_valid())
    num_missing = max(0, num - len(rows["id"].unique()) + len(ends))
    pq.write_table(rows.take(np.delete(np.arange(len(rows)), ends[len(ends) - num_missing :])), file)
