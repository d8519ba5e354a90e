"""Rows encoded for the network, in memory and as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve.model.encoder import Encoder
from training.network.network import Network, NetworkConfig

EVALUATION_BATCH = 16_384
"""Rows per forward pass where no gradient is kept; bounds the memory, changes no result."""


@dataclass(frozen=True)
class Rows:
    """Rows as `Encoder.encode` gives them, with their labels (0 or 1)."""

    numeric: NDArray[np.float32]  # [N, F]
    hot: NDArray[np.float32]  # [N, V]
    index: NDArray[np.int64]  # [N, K]
    label: NDArray[np.float32]  # [N], 0 or 1; a share between them where it is another model's opinion
    position: NDArray[np.int64]  # [N], where the row was shown, from 0


@dataclass(frozen=True)
class Inputs:
    """Rows as the loop sees them, in memory: x f32 [N, D] is ready for `Network.forward`."""

    x: Tensor
    label: Tensor  # f32 [N]
    position: Tensor  # i64 [N]

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: torch.device) -> Inputs:
        """The same rows on `device`."""
        return Inputs(self.x.to(device), self.label.to(device), self.position.to(device))

    def save(self, folder: Path, name: str) -> None:
        """Writes the rows, for `map`; the folder is made where there is none."""
        folder.mkdir(parents=True, exist_ok=True)
        for what, tensor in vars(self).items():
            np.save(folder / f"{name}-{what}.npy", tensor.numpy())

    @classmethod
    def map(cls, folder: Path, name: str) -> Inputs:
        """What `save` wrote, mapped into memory; processes share the pages (torch wants them writable: "c")."""
        paths = {f.name: folder / f"{name}-{f.name}.npy" for f in fields(cls)}
        return cls(**{what: torch.from_numpy(np.load(path, mmap_mode="c")) for what, path in paths.items()})

    def batches(self, size: int, mine: slice, seed: int) -> Iterator[Inputs]:
        """As `Source` says; the order is drawn for all ranks, so their number does not change it."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for start in range(0, len(self) - size + 1, size):
            rows = order[start : start + size][mine].to(self.x.device)
            yield Inputs(*(t.index_select(0, rows) for t in (self.x, self.label, self.position)))


def inputs(rows: Rows, encoder: Encoder, config: NetworkConfig) -> Inputs:
    """Transforms all rows once; an epoch then only picks rows from the result."""
    network = Network(encoder, config)
    num_rows = len(rows.label)
    x = torch.empty(num_rows, len(encoder.input_names))
    for start in range(0, num_rows, EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        arrays = (rows.numeric[part], rows.hot[part], rows.index[part])
        x[part] = network.inputs(*(torch.from_numpy(array) for array in arrays))
    return Inputs(x, torch.from_numpy(rows.label), torch.from_numpy(rows.position))
