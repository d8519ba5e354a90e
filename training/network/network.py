"""The network that is trained: TabNet on the inputs of an encoder, and rows of these inputs.

In shapes, R and N are numbers of rows, O of outcomes, F of numeric columns, I of missing
indicators, V of multi-hot columns and K1 of single category columns. D0 = F + I + V.
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
from training.network.layers import NetworkConfig as NetworkConfig
from training.network.tabnet import TabNet

# The numbers, hot columns and category indices of rows, as `Encoder.encode` returns them.
Encoded = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]
# A forward pass without gradients takes at most this many rows, which bounds the memory and does
# not change the results.
EVALUATION_BATCH = 16_384
# If there are more rows than SHUFFLED_ROWS, a pass shuffles this many at once, and reads them in
# random pieces of PIECE_ROWS adjacent rows. With 250 bytes per row, that takes 250 MB.
SHUFFLED_ROWS, PIECE_ROWS = 1 << 20, 1 << 10


class Network(nn.Module):
    """TabNet on the columns of `encoder.input_names`, with an output for each outcome.

    Its inputs come from `encoder.encode`, and an embedded category is one column. What is exported
    is the state dict `network.tabnet.state_dict()`.
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

        Numbers are transformed, standardised and clipped; missing numbers become 0. Nothing in this
        is learned, so it runs only once for each row.
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
        """Return the logits [R, O] of x [R, D0 + K1], in eval mode and without gradients."""
        assert not self.training
        return torch.cat([self.tabnet(part)[0] for part in torch.split(x, EVALUATION_BATCH)])


@dataclass(frozen=True)
class Inputs:
    """Rows as the training loop reads them. `TabNet.forward` takes x f32 [N, D].

    Their memory may be mapped from files, so a pass reads pieces of adjacent rows rather than
    single rows all over a file.
    """

    x: Tensor
    # f32 [N, O], the shares of `Dataset.outcomes`, NaN where unknown. If other models teach, they
    # are mixed with their predictions.
    label: Tensor
    # f32 [N, O], the examination of the row's position; 1 if position bias is ignored.
    examination: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: torch.device) -> Inputs:
        """Return the same rows on `device`."""
        return Inputs(self.x.to(device), self.label.to(device), self.examination.to(device))

    def save(self, folder: Path, name: str) -> None:
        """Write the rows to files that `map` reads. The folder is created if it is missing.

        Raises:
            TabrankError: the files cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for what, tensor in vars(self).items():
                np.save(folder / f"{name}-{what}.npy", tensor.numpy())
        except OSError as error:
            raise TabrankError(
                f"{folder}: the rows to train on cannot be written: {error.strerror or error}; free disk space, or "
                "name another folder: `fit` takes the environment variable TMPDIR, `search` takes --out"
            ) from error

    @classmethod
    def map(cls, folder: Path, name: str) -> Inputs:
        """Map the files of `save` into memory, whose pages processes share."""
        # torch requires writable pages, which mode "c" gives without changing the file.
        paths = {f.name: folder / f"{name}-{f.name}.npy" for f in fields(cls)}
        return cls(**{what: torch.from_numpy(np.load(path, mmap_mode="c")) for what, path in paths.items()})

    def batches(self, size: int, mine: slice, seed: int) -> Iterator[Inputs]:
        """Yield one pass over the rows, in an order drawn from `seed`, in batches of `size`.

        `size` counts the rows of all ranks together. Each yielded batch is one rank's part of them,
        `mine`, as tensors that the caller may change. Rows after the last whole batch are left out.
        """
        order = _shuffled(len(self), torch.Generator().manual_seed(seed))
        for start in range(0, len(self) - size + 1, size):
            rows = order[start : start + size][mine].to(self.x.device)
            yield Inputs(*(t.index_select(0, rows) for t in (self.x, self.label, self.examination)))


def _shuffled(num_rows: int, chance: torch.Generator) -> Tensor:
    """Return the numbers [N] of all rows in random order: random pieces, then rows within these."""
    order = torch.arange(num_rows)
    if num_rows > SHUFFLED_ROWS:
        pieces = torch.randperm(-(-num_rows // PIECE_ROWS), generator=chance)
        order = (pieces[:, None] * PIECE_ROWS + torch.arange(PIECE_ROWS)).flatten()
        order = order[order < num_rows]
    return torch.cat([p[torch.randperm(len(p), generator=chance)] for p in torch.split(order, SHUFFLED_ROWS)])


def inputs(
    encoder: Encoder, encoded: Encoded, label: NDArray[np.float32], examination: NDArray[np.float64]
) -> Inputs:
    """Transform all rows once, so that an epoch only has to select rows from the result."""
    x = Network(encoder, NetworkConfig()).inputs(*map(torch.from_numpy, encoded))
    return Inputs(x, torch.from_numpy(label), torch.from_numpy(examination).float())


def flat(parameters: Iterable[nn.Parameter]) -> nn.Parameter:
    """Return one parameter that holds all elements of the given ones, in order.

    An optimiser step is then a single call. Each given parameter becomes a view of its part, and
    its gradient a view of the same part of the gradient. So a backward pass adds to the whole
    gradient, and a step on the whole changes every part. Never set a gradient to None, which would
    cut it off from the whole.
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
