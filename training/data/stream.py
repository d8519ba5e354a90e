"""Rows that do not fit in memory: shuffled once into files, of which training reads one at a time.

Letters: N rows, D inputs, O outcomes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import default_rng
from numpy.typing import NDArray

from training.network.network import Inputs

# Rows in one file, which a reader holds in memory as a whole.
ROWS_PER_FILE = 65_536


def _record(width: int, num_outcomes: int) -> np.dtype[np.void]:
    """Return the dtype of one row with D = `width` inputs in a file."""
    shapes = {"x": width, "label": num_outcomes, "examination": num_outcomes}
    return np.dtype([(name, "<f4", (size,)) for name, size in shapes.items()])


def _name(number: int) -> str:
    return f"{number:05d}.rows"


class Spill:
    """Writer of `num_rows` rows, given in any number of parts, to files of nearly equal size.

    The file of each row is drawn once for all rows, so each file is a random sample. Batches of one
    file after the other, each in random order, are therefore as good as batches of all rows.
    """

    def __init__(self, folder: Path, num_rows: int, width: int, num_outcomes: int) -> None:
        self._folder, self._shape = folder, (width, num_outcomes)
        num_files = max(1, -(-num_rows // ROWS_PER_FILE))
        self._file = (default_rng(0).permutation(num_rows) % num_files).astype(np.int32)
        self._sizes: tuple[int, ...] = tuple(np.bincount(self._file, minlength=num_files).tolist())
        self._hash = hashlib.sha256()
        self._at = 0
        folder.mkdir(parents=True)

    def add(self, rows: Inputs) -> None:
        """Append rows."""
        records = np.empty(len(rows), _record(*self._shape))
        for name, tensor in vars(rows).items():
            records[name] = tensor.numpy()
        self._hash.update(records.data)
        chosen = self._file[self._at : self._at + len(records)]
        self._at += len(records)
        order = np.argsort(chosen, kind="stable")
        bounds = np.cumsum(np.bincount(chosen, minlength=len(self._sizes)))
        for number, mine in enumerate(np.split(records[order], bounds[:-1])):
            with (self._folder / _name(number)).open("ab") as file:
                mine.tofile(file)

    def streamed(self) -> Streamed:
        """Return the rows written; the same rows have the same digest."""
        return Streamed(self._folder, self._sizes, self._shape, self._hash.hexdigest())


@dataclass(frozen=True)
class Streamed:
    """Rows in the files of a `Spill`; a `Source` for `training.fit.loop.run`.

    Every rank reads every file and keeps its part of each batch. The order does not depend on the
    number of ranks: all ranks see the same number of batches, and together take the same steps as
    one process.
    """

    folder: Path
    # Rows of each file.
    sizes: tuple[int, ...]
    # D and O.
    shape: tuple[int, int]
    # SHA-256 of the rows.
    digest: str

    def __len__(self) -> int:
        return sum(self.sizes)

    def batches(self, size: int, mine: slice, seed: int) -> Iterator[Inputs]:
        """Yield the batches as `Source.batches` defines them."""
        own, rows = mine.stop - mine.start, np.empty(0, _record(*self.shape))
        for number, start in self.files(seed):
            # A batch may begin in one file and end in the next.
            rows = np.concatenate([rows, self.read(number, start, size, mine, seed)])
            for begin in range(0, len(rows) - own + 1, own):
                batch = rows[begin : begin + own]
                yield Inputs(*(torch.tensor(batch[name]) for name in ("x", "label", "examination")))
            rows = rows[len(rows) // own * own :]

    def files(self, seed: int) -> list[tuple[int, int]]:
        """Return (number, first row in the pass) of each file, in the order of this pass."""
        order = default_rng(seed).permutation(len(self.sizes)).tolist()
        starts = np.cumsum([0, *(self.sizes[number] for number in order)]).tolist()
        return list(zip(order, starts[:-1], strict=True))

    def read(self, number: int, start: int, size: int, mine: slice, seed: int) -> NDArray[np.void]:
        """Read the rows of a file that belong to one rank, in the order of this pass.

        `seed` and `number` determine the order of the file's rows, which are the pass's rows from
        `start` on. Of each batch of `size` rows, the rank takes the rows `mine`. Rows after the
        last whole batch are left out.
        """
        rows = np.fromfile(self.folder / _name(number), _record(*self.shape))
        order = default_rng([seed, number]).permutation(len(rows))
        place = start + np.arange(len(rows))
        within = place % size
        taken = (place < len(self) // size * size) & (within >= mine.start) & (within < mine.stop)
        return np.asarray(rows[order[taken]])
