"""Rows for the network, as the tensors that the training loop reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve.model.encoder import Encoder
from training.network.network import EVALUATION_BATCH, Network, NetworkConfig

# Numbers, hot columns and indices of rows, as `Encoder.encode` returns them.
Encoded = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class Inputs:
    """Rows in memory as the training loop reads them; `Network.forward` takes x f32 [N, D]."""

    x: Tensor
    # f32 [N], 0 or 1; a probability in between where the label is the prediction of another model.
    label: Tensor
    # i64 [N], the position in the slate at which the row was shown, from 0.
    position: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: torch.device) -> Inputs:
        """Return the same rows on `device`."""
        return Inputs(self.x.to(device), self.label.to(device), self.position.to(device))

    def save(self, folder: Path, name: str) -> None:
        """Write the rows to files that `map` reads; create the folder if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        for what, tensor in vars(self).items():
            np.save(folder / f"{name}-{what}.npy", tensor.numpy())

    @classmethod
    def map(cls, folder: Path, name: str) -> Inputs:
        """Map the files of `save` into memory; processes share the pages."""
        # Mode "c" makes the pages writable, which torch requires.
        paths = {f.name: folder / f"{name}-{f.name}.npy" for f in fields(cls)}
        return cls(**{what: torch.from_numpy(np.load(path, mmap_mode="c")) for what, path in paths.items()})

    def batches(self, size: int, mine: slice, seed: int) -> Iterator[Inputs]:
        """Yield the batches of one rank in random order, as `Source.batches` defines it.

        The order is drawn for all ranks, so it does not depend on their number.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for start in range(0, len(self) - size + 1, size):
            rows = order[start : start + size][mine].to(self.x.device)
            yield Inputs(*(t.index_select(0, rows) for t in (self.x, self.label, self.position)))


def inputs(
    encoder: Encoder, encoded: Encoded, label: NDArray[np.float32], position: NDArray[np.int64]
) -> Inputs:
    """Transform all rows once, so that an epoch only selects rows from the result."""
    network = Network(encoder, NetworkConfig())
    x = torch.empty(len(label), len(encoder.input_names))
    for start in range(0, len(label), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        x[part] = network.inputs(*(torch.from_numpy(array[part]) for array in encoded))
    return Inputs(x, torch.from_numpy(label), torch.from_numpy(position))
