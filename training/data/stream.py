"""Rows that do not fit in memory: shuffled once into files, which Ray Data reads ahead of training.

Letters: N rows, D inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import default_rng
from numpy.typing import NDArray

from training.network.network import Inputs

# Rows in one file, which a reader holds in memory as a whole.
ROWS_PER_FILE = 65_536
# Batches to take from Ray Data in one call, because a call costs as much as training on some rows.
BATCHES_AT_ONCE = 16


def _record(width: int) -> np.dtype[np.void]:
    """Return the dtype of one row with D = `width` inputs in a file."""
    return np.dtype([("x", "<f4", (width,)), ("label", "<f4"), ("examination", "<f4")])


def _name(number: int) -> str:
    return f"{number:05d}.rows"


class Spill:
    """Writer of `num_rows` rows, given in any number of parts, to files of nearly equal size.

    The file of each row is drawn once for all rows, so each file is a random sample. Batches of one
    file after the other, each in random order, are therefore as good as batches of all rows.
    """

    def __init__(self, folder: Path, num_rows: int, width: int) -> None:
        self._folder, self._width = folder, width
        num_files = max(1, -(-num_rows // ROWS_PER_FILE))
        self._file = (default_rng(0).permutation(num_rows) % num_files).astype(np.int32)
        self._sizes: tuple[int, ...] = tuple(np.bincount(self._file, minlength=num_files).tolist())
        self._hash = hashlib.sha256()
        self._at = 0
        folder.mkdir(parents=True)

    def add(self, rows: Inputs) -> None:
        """Append rows."""
        records = np.empty(len(rows), _record(self._width))
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
        return Streamed(self._folder, self._sizes, self._width, self._hash.hexdigest())


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
    width: int
    # SHA-256 of the rows.
    digest: str

    def __len__(self) -> int:
        return sum(self.sizes)

    def batches(self, size: int, mine: slice, seed: int) -> Iterator[Inputs]:
        """Yield the batches as `Source.batches` defines them; Ray must be running."""
        import ray.data
        from ray.data import ExecutionResources, TaskPoolStrategy

        def read(file: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
            rows = self.read(int(file["number"][0]), int(file["start"][0]), size, mine, seed)
            return {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}

        files = [{"number": number, "start": start} for number, start in self.files(seed)]
        data = ray.data.from_items(files, override_num_blocks=len(files))
        data.context.enable_progress_bars = False
        options = data.context.execution_options
        options.preserve_order = True
        file_bytes = ROWS_PER_FILE * _record(self.width).itemsize
        options.resource_limits = ExecutionResources(object_store_memory=8.0 * file_bytes)
        # A reader requests no CPU: where workers hold every CPU, Ray would wait for one forever.
        data = data.map_batches(
            read, batch_size=1, batch_format="numpy", num_cpus=0, compute=TaskPoolStrategy(size=2)
        )
        own = mine.stop - mine.start
        for rows in data.iter_batches(batch_size=own * BATCHES_AT_ONCE, batch_format="numpy"):
            # Copy, because arrays from Ray Data lie in the object store and are read-only.
            parts = [torch.split(torch.tensor(rows[part]), own) for part in ("x", "label", "examination")]
            yield from (Inputs(*batch) for batch in zip(*parts, strict=True))

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
        rows = np.fromfile(self.folder / _name(number), _record(self.width))
        order = default_rng([seed, number]).permutation(len(rows))
        place = start + np.arange(len(rows))
        within = place % size
        taken = (place < len(self) // size * size) & (within >= mine.start) & (within < mine.stop)
        return np.asarray(rows[order[taken]])
