"""The graph's operations in torch, on any device. Importing this module imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class TorchOps:
    """Computes at once; an array becomes a tensor on the device at its first use and stays there."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._constants: dict[int, tuple[NDArray[Any], Tensor]] = {}

    def constant(self, array: NDArray[Any]) -> Tensor:
        """The array as a tensor; it is kept beside it, so that its id stays its own."""
        if id(array) not in self._constants:
            self._constants[id(array)] = (array, torch.from_numpy(array.copy()).to(self._device))
        return self._constants[id(array)][1]

    def scalar(self, value: float) -> Any:
        """A Python number, which torch broadcasts without a tensor."""
        return value

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """A + b."""
        return a + b

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        """A - b."""
        return a - b

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """A · b."""
        return a * b

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        """A / b."""
        return a / b

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """The matrix product."""
        return a @ b

    def linear(self, weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        """Weight · x + bias."""
        return torch.addmm(bias, weight, x)

    def relu(self, a: Tensor) -> Tensor:
        """max(a, 0)."""
        return torch.relu(a)

    def positive(self, a: Tensor) -> Tensor:
        """1.0 where a > 0, else 0.0."""
        return (a > 0).float()

    def sigmoid(self, a: Tensor) -> Tensor:
        """1 / (1 + exp(-a))."""
        return torch.sigmoid(a)

    def sqrt(self, a: Tensor) -> Tensor:
        """The square root."""
        return torch.sqrt(a)

    def abs(self, a: Tensor) -> Tensor:
        """|a|."""
        return torch.abs(a)

    def log(self, a: Tensor) -> Tensor:
        """The natural logarithm."""
        return torch.log(a)

    def clip(self, a: Tensor, low: float, high: float) -> Tensor:
        """Between low and high."""
        return torch.clamp(a, low, high)

    def max(self, a: Tensor) -> Tensor:
        """The largest over the columns."""
        return torch.amax(a, dim=0, keepdim=True)

    def sort(self, a: Tensor) -> Tensor:
        """The largest first, over the columns."""
        return torch.sort(a, dim=0, descending=True).values

    def is_nan(self, a: Tensor) -> Tensor:
        """Whether each is NaN."""
        return torch.isnan(a)

    def less_equal(self, a: Tensor, b: Tensor) -> Tensor:
        """Whether a ≤ b."""
        return a <= b

    def where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """A where the condition holds, else b."""
        return torch.where(condition, a, b)

    def to_float(self, condition: Tensor) -> Tensor:
        """1.0 or 0.0."""
        return condition.float()

    def transpose(self, a: Tensor) -> Tensor:
        """[columns, R] ↔ [R, columns]."""
        return a.t()

    def concat(self, parts: Sequence[Tensor]) -> Tensor:
        """One below the other."""
        return torch.cat(list(parts), dim=0)

    def take(self, a: Tensor, columns: NDArray[Any]) -> Tensor:
        """The named columns."""
        return a.index_select(0, self.constant(columns))

    def embed(self, table: Tensor, index: Tensor) -> Tensor:
        """Rows of table [N, e] by index [K, R], as [K · e, R]."""
        num_columns, num_rows = index.shape
        return table[index].permute(0, 2, 1).reshape(num_columns * table.shape[1], num_rows)

    def flatten(self, a: Tensor) -> Tensor:
        """As one axis."""
        return a.reshape(-1)
