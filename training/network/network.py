"""Trainable network: TabNet on the inputs of an encoder, and rows of these inputs.

Letters: R rows, O outcomes, F numeric columns, I missing indicators, V multi-hot columns, K1 single
category columns, D0 = F + I + V.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serve.contract.errors import TabrankError
from serve.model.encoder import CLIP, Encoder
from training.network.config import NetworkConfig as NetworkConfig
from training.network.tabnet import TabNet

# Numbers, hot columns and indices of rows, as `Encoder.encode` returns them.
Encoded = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]
# Rows in one forward pass without gradients. The limit bounds memory and does not change results.
EVALUATION_BATCH = 16_384
# Rows that a pass shuffles at once, and rows beside each other that it reads together, if there are
# more. They are a random part of all rows, and their memory is small: 250 bytes a row make 250 MB.
SHUFFLED_ROWS, PIECE_ROWS = 1 << 20, 1 << 10


class Network(nn.Module):
    """TabNet with an output for each outcome on the columns of `encoder.input_names`.

    Its inputs come from `encoder.encode`; an embedded category is one column. Export the state dict
    `network.tabnet.state_dict()`.
    """

    mean: Tensor
    scale: Tensor
    logged: Tensor
    indicators: Tensor

    def __init__(self, encoder: Encoder, config: NetworkConfig, num_outcomes: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        num_inputs, num_single = len(encoder.input_names), len(encoder.single)
        if num_inputs == 0:
            raise TabrankError("network: the encoder has no columns; give the surface at least one feature")
        sizes = [column.embedding for column in encoder.single]
        tables = list(zip(encoder.cardinalities, sizes, strict=True))
        self.tabnet = TabNet(num_inputs - num_single, tables, config, num_outcomes)
        columns = encoder.numeric
        for name, values in (
            ("mean", torch.tensor([c.mean for c in columns], dtype=torch.float32)),
            ("scale", torch.tensor([1.0 / c.std for c in columns], dtype=torch.float32)),
            ("logged", torch.tensor([c.transform == "log1p" for c in columns], dtype=torch.bool)),
            ("indicators", torch.tensor(encoder.indicators, dtype=torch.int64)),
        ):
            self.register_buffer(name, values, persistent=False)

    @torch.no_grad()
    def inputs(self, numeric: Tensor, hot: Tensor, index: Tensor) -> Tensor:
        """Transform encoded rows (f32 [R, F], f32 [R, V], i64 [R, K1]) to x f32 [R, D0 + K1].

        Numbers are transformed, standardised and clipped; missing ones are 0. The transform is not
        learned, so it runs once for each row.
        """
        x = torch.empty(len(numeric), len(self.encoder.input_names))
        parts = (torch.split(rows, EVALUATION_BATCH) for rows in (x, numeric, hot, index))
        for part, *encoded in zip(*parts, strict=True):
            part[:] = self._transformed(*encoded)
        return x

    def _transformed(self, numeric: Tensor, hot: Tensor, index: Tensor) -> Tensor:
        missing = torch.isnan(numeric)
        logged = torch.sign(numeric) * torch.log(1.0 + torch.abs(numeric))
        value = torch.where(missing, self.mean, torch.where(self.logged, logged, numeric))
        value = torch.clamp((value - self.mean) * self.scale, -CLIP, CLIP)
        return torch.cat([value, missing[:, self.indicators].float(), hot, index.float()], dim=1)

    @torch.no_grad()
    def logit(self, x: Tensor) -> Tensor:
        """Return the logit [R, O] of x [R, D0 + K1], in eval mode and without gradients."""
        assert not self.training
        return torch.cat([self.tabnet(part)[0] for part in torch.split(x, EVALUATION_BATCH)])


@dataclass(frozen=True)
class Inputs:
    """Rows as the training loop reads them; `TabNet.forward` takes x f32 [N, D].

    Their memory may be that of files, so a pass never reads rows all over them.
    """

    x: Tensor
    # f32 [N, O], the shares of `Dataset.outcomes`, NaN where unknown; mixed with the predictions of
    # other models where these teach.
    label: Tensor
    # f32 [N, O], examination of the position at which the row was shown; 1 where bias is ignored.
    examination: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: torch.device) -> Inputs:
        """Return the same rows on `device`."""
        return Inputs(self.x.to(device), self.label.to(device), self.examination.to(device))

    def save(self, folder: Path, name: str) -> None:
        """Write the rows to files that `map` reads; create the folder if it is missing.

        Raises:
            TabrankError: they cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for what, tensor in vars(self).items():
                np.save(folder / f"{name}-{what}.npy", tensor.numpy())
        except OSError as error:
            raise TabrankError(
                f"{folder}: the rows to train on cannot be written: {error.strerror or error}; free disk space, or "
                "name another folder: `fit` takes --storage or the environment variable TMPDIR, `search` takes --out"
            ) from error

    @classmethod
    def map(cls, folder: Path, name: str) -> Inputs:
        """Map the files of `save` into memory; processes share the pages."""
        # Mode "c" makes the pages writable, which torch requires.
        paths = {f.name: folder / f"{name}-{f.name}.npy" for f in fields(cls)}
        return cls(**{what: torch.from_numpy(np.load(path, mmap_mode="c")) for what, path in paths.items()})

    def batches(self, size: int, mine: slice, seed: int) -> Iterator[Inputs]:
        """Yield one pass over the rows, in an order drawn from `seed`, in batches of `size`.

        `size` counts the rows of all ranks; each batch is the part `mine` of one rank, as tensors
        that the caller may change. Rows after the last whole batch are left out.
        """
        order = _shuffled(len(self), torch.Generator().manual_seed(seed))
        for start in range(0, len(self) - size + 1, size):
            rows = order[start : start + size][mine].to(self.x.device)
            yield Inputs(*(t.index_select(0, rows) for t in (self.x, self.label, self.examination)))


def _shuffled(num_rows: int, chance: torch.Generator) -> Tensor:
    """Return the numbers of all rows in random order, [N]: random pieces, then their rows."""
    order = torch.arange(num_rows)
    if num_rows > SHUFFLED_ROWS:
        pieces = torch.randperm(-(-num_rows // PIECE_ROWS), generator=chance)
        order = (pieces[:, None] * PIECE_ROWS + torch.arange(PIECE_ROWS)).flatten()
        order = order[order < num_rows]
    return torch.cat([p[torch.randperm(len(p), generator=chance)] for p in torch.split(order, SHUFFLED_ROWS)])


def inputs(
    encoder: Encoder, encoded: Encoded, label: NDArray[np.float32], examination: NDArray[np.float64]
) -> Inputs:
    """Transform all rows once, so that an epoch only selects rows from the result."""
    x = Network(encoder, NetworkConfig()).inputs(*map(torch.from_numpy, encoded))
    return Inputs(x, torch.from_numpy(label), torch.from_numpy(examination).float())


def flat(parameters: Iterable[nn.Parameter]) -> nn.Parameter:
    """Return one parameter [all elements] in place of the given ones, in order.

    An optimiser step is then one call. Each given parameter becomes a view of its part, and its
    gradient a view of the gradient's part. A backward pass therefore adds to the whole gradient,
    and a step on the whole changes every part. Never set a gradient to None.
    """
    parts = list(parameters)
    whole = nn.Parameter(nn.utils.parameters_to_vector(parts).detach())
    whole.grad = torch.zeros_like(whole)
    nn.utils.vector_to_parameters(whole.data, parts)
    start = 0
    for part in parts:
        part.grad = whole.grad[start : start + part.numel()].view_as(part)
        start += part.numel()
    return whole
