"""Rows on disk: network inputs, shuffled once into files that are random samples of all rows.

Imports NumPy alone, so that a process that only reads rows stays small. Letters: N rows, D inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

# Rows in one file, which a reader holds in memory as a whole.
ROWS_PER_FILE = 65_536


def record(width: int) -> np.dtype[np.void]:
    """Return the dtype of one row with D = `width` inputs in a file."""
    return np.dtype([("x", "<f4", (width,)), ("label", "<f4"), ("position", "<i4")])


class Spill:
    """Writer of `num_rows` rows, given in any number of parts, to files of nearly equal size.

    The file of each row is drawn once for all rows, so each file is a random sample. Batches of one
    file after the other, each in random order, are therefore as good as batches of all rows.
    """

    def __init__(self, folder: Path, num_rows: int, width: int) -> None:
        self.folder, self.width = folder, width
        num_files = max(1, -(-num_rows // ROWS_PER_FILE))
        self._file = (default_rng(0).permutation(num_rows) % num_files).astype(np.int32)
        self.sizes: tuple[int, ...] = tuple(np.bincount(self._file, minlength=num_files).tolist())
        self._hash = hashlib.sha256()
        self._at = 0
        folder.mkdir(parents=True)

    def add(self, x: NDArray[np.float32], label: NDArray[np.float32], position: NDArray[np.int64]) -> None:
        """Append rows: x [n, D], label and position [n]."""
        rows = np.empty(len(x), record(self.width))
        rows["x"], rows["label"], rows["position"] = x, label, position
        self._hash.update(rows.data)
        chosen = self._file[self._at : self._at + len(rows)]
        self._at += len(rows)
        order = np.argsort(chosen, kind="stable")
        bounds = np.cumsum(np.bincount(chosen, minlength=len(self.sizes)))
        for number, mine in enumerate(np.split(rows[order], bounds[:-1])):
            with (self.folder / name(number)).open("ab") as file:
                mine.tofile(file)

    @property
    def digest(self) -> str:
        """SHA-256 of the rows written: the same rows give the same digest."""
        return self._hash.hexdigest()


def name(number: int) -> str:
    """Return the name of the file with this number."""
    return f"{number:05d}.rows"


def read(job: Mapping[str, Any]) -> NDArray[np.void]:
    """Read the rows of one file that belong to one rank, in the order of this pass.

    `seed` and `number` determine the order of the file's rows, which are the pass's rows from
    `start` on. Of each batch of `size` rows, the rank takes rows `begin` to `end`; the pass ends
    after `num_rows` rows.
    """
    rows = np.fromfile(Path(job["folder"]) / name(job["number"]), record(job["width"]))
    order = default_rng([job["seed"], job["number"]]).permutation(len(rows))
    place = job["start"] + np.arange(len(rows))
    within = place % job["size"]
    mine = (place < job["num_rows"]) & (within >= job["begin"]) & (within < job["end"])
    return np.asarray(rows[order[mine]])
