"""Rows on disk: ready network inputs, shuffled once into files that each hold a random share of all rows.

NumPy alone, so that a process that only reads them stays small. Letters: N rows, D network inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

ROWS_PER_FILE = 65_536


def record(width: int) -> np.dtype[np.void]:
    """One row with D = `width` inputs, as it lies in a file."""
    return np.dtype([("x", "<f4", (width,)), ("label", "<f4"), ("position", "<i4")])


class Spill:
    """Writes `num_rows` rows, given in any number of parts, to files of nearly equal size.

    Which file a row goes to is drawn once for all rows: a file is a fair sample, so that batches of one file
    after the other, each in a random order, are as good as batches of all rows.
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
        """Appends rows: x [n, D], label and position [n]."""
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
        """Names what was written, the same for the same rows."""
        return self._hash.hexdigest()


def name(number: int) -> str:
    """The name of a file."""
    return f"{number:05d}.rows"


def read(job: Mapping[str, Any]) -> NDArray[np.void]:
    """The rows that one rank takes of a file, in this pass's order.

    The file's rows, in an order drawn from `seed` and `number`, are the pass's rows from `start` on; of each
    `size` of these the rank has those from `begin` to `end`; the pass is over after `num_rows`.
    """
    rows = np.fromfile(Path(job["folder"]) / name(job["number"]), record(job["width"]))
    order = default_rng([job["seed"], job["number"]]).permutation(len(rows))
    place = job["start"] + np.arange(len(rows))
    within = place % job["size"]
    mine = (place < job["num_rows"]) & (within >= job["begin"]) & (within < job["end"])
    return np.asarray(rows[order[mine]])
