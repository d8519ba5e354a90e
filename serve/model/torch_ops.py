"""Operations of the inference graph in torch, on any device. Importing it imports torch."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class TorchOps:
    """Computes immediately; an array is copied to the device at its first use and stays there."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._constants: dict[int, tuple[NDArray[Any], Tensor]] = {}

    def constant(self, array: NDArray[Any]) -> Tensor:
        """Return the array as a tensor; the array is kept too, so that its id stays unique."""
        if id(array) not in self._constants:
            self._constants[id(array)] = (array, torch.from_numpy(array.copy()).to(self._device))
        return self._constants[id(array)][1]

    def scalar(self, value: float) -> Any:
        """Return a Python number; torch broadcasts it without a tensor."""
        return value

    # Operators rather than torch's functions: one operand may be a Python number.
    add = staticmethod(operator.add)
    sub = staticmethod(operator.sub)
    mul = staticmethod(operator.mul)
    div = staticmethod(operator.truediv)
    matmul = staticmethod(operator.matmul)
    relu = staticmethod(torch.relu)
    sigmoid = staticmethod(torch.sigmoid)
    sqrt = staticmethod(torch.sqrt)
    abs = staticmethod(torch.abs)
    log = staticmethod(torch.log)
    is_nan = staticmethod(torch.isnan)
    less_equal = staticmethod(operator.le)
    transpose = staticmethod(torch.t)
    to_float = staticmethod(Tensor.float)

    def linear(self, weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """Weight · x + bias."""
        return torch.addmm(bias, weight, x)

    def positive(self, a: Tensor) -> Tensor:
        """1.0 where a > 0, else 0.0."""
        return (a > 0).float()

    def clip(self, a: Tensor, low: float, high: float) -> Tensor:
        """A, limited to the range from `low` to `high`."""
        return torch.clamp(a, low, high)

    def max(self, a: Tensor) -> Tensor:
        """The maximum over the columns."""
        return torch.amax(a, dim=0, keepdim=True)

    def sort(self, a: Tensor) -> Tensor:
        """Sorted over the columns, descending."""
        return torch.sort(a, dim=0, descending=True).values

    def where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """A where the condition holds, else b."""
        return torch.where(condition, a, b)

    def concat(self, parts: Sequence[Tensor]) -> Tensor:
        """Concatenation along the columns."""
        return torch.cat(list(parts), dim=0)

    def take(self, a: Tensor, columns: NDArray[Any]) -> Tensor:
        """The given columns, in that order."""
        return a.index_select(0, self.constant(columns))

    def embed(self, table: Tensor, index: Tensor) -> Tensor:
        """Rows of table [N, e] by index [K, R], as [K · e, R]."""
        num_columns, num_rows = index.shape
        return table[index].permute(0, 2, 1).reshape(num_columns * table.shape[1], num_rows)

    def flatten(self, a: Tensor) -> Tensor:
        """Flattened to one axis."""
        return a.reshape(-1)
