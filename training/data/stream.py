"""Batches of rows that do not fit in memory: Ray Data reads the rows' files ahead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import default_rng
from numpy.typing import NDArray

from training.data.disk_rows import ROWS_PER_FILE, read, record
from training.network.inputs import Inputs

# Batches to take from Ray Data in one call, because a call costs as much as training on some rows.
BATCHES_AT_ONCE = 16


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
    digest: str

    def __len__(self) -> int:
        return sum(self.sizes)

    def batches(self, size: int, mine: slice, seed: int) -> Iterator[Inputs]:
        """Yield the batches as `Source.batches` defines them; Ray must be running."""
        import ray.data
        from ray.data import ExecutionResources, TaskPoolStrategy

        data = ray.data.from_items(self._jobs(size, mine, seed), override_num_blocks=len(self.sizes))
        data.context.enable_progress_bars = False
        options = data.context.execution_options
        options.preserve_order = True
        file_bytes = ROWS_PER_FILE * record(self.width).itemsize
        options.resource_limits = ExecutionResources(object_store_memory=8.0 * file_bytes)
        # A reader requests no CPU: where workers hold every CPU, Ray would wait for one forever.
        data = data.map_batches(
            _read, batch_size=1, batch_format="numpy", num_cpus=0, compute=TaskPoolStrategy(size=2)
        )
        own = mine.stop - mine.start
        for rows in data.iter_batches(batch_size=own * BATCHES_AT_ONCE, batch_format="numpy"):
            # Copy, because arrays from Ray Data lie in the object store and are read-only.
            parts = [torch.split(torch.tensor(rows[part]), own) for part in ("x", "label", "position")]
            yield from (Inputs(*batch) for batch in zip(*parts, strict=True))

    def _jobs(self, size: int, mine: slice, seed: int) -> list[dict[str, Any]]:
        """Return the arguments of `disk_rows.read` for each file, in the order of this pass."""
        order = default_rng(seed).permutation(len(self.sizes))
        starts = np.cumsum([0, *(self.sizes[number] for number in order)])
        common = {
            "folder": str(self.folder),
            "width": self.width,
            "seed": seed,
            "size": size,
            "begin": mine.start,
            "end": mine.stop,
            "num_rows": len(self) // size * size,
        }
        return [
            common | {"number": int(number), "start": int(start)}
            for number, start in zip(order, starts[:-1], strict=True)
        ]


def _read(jobs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    job = {key: values[0].item() if hasattr(values[0], "item") else values[0] for key, values in jobs.items()}
    rows = read(job)
    return {
        "x": np.ascontiguousarray(rows["x"]),
        "label": np.ascontiguousarray(rows["label"]),
        "position": rows["position"].astype(np.int64),
    }
