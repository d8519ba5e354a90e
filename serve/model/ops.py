"""The array operations that the inference graph is written in: one namespace computes, one builds ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

T = TypeVar("T")

LARGE = 1e30
"""Makes a step of a ramp: min(a · LARGE, 1) says whether a is positive."""


class Ops(Protocol[T]):
    """Operations on 2-D arrays that broadcast as NumPy does; "columns" are the first axis, rows the second.

    Reductions keep their axis. Comparisons give truth values, which `where` and `to_float` take.
    """

    def constant(self, array: NDArray[Any]) -> T:
        """An array that is part of the graph and lives as long as it."""
        ...

    def scalar(self, value: float) -> T:
        """A number that is part of the graph."""
        ...

    def add(self, a: T, b: T) -> T:
        """A + b."""
        ...

    def sub(self, a: T, b: T) -> T:
        """A - b."""
        ...

    def mul(self, a: T, b: T) -> T:
        """A · b, element by element."""
        ...

    def div(self, a: T, b: T) -> T:
        """A / b."""
        ...

    def matmul(self, a: T, b: T) -> T:
        """The matrix product."""
        ...

    def linear(self, weight: T, x: T, bias: T) -> T:
        """Weight [out, in] · x [in, R] + bias [out, 1], or [out, R]."""
        ...

    def relu(self, a: T) -> T:
        """max(a, 0)."""
        ...

    def positive(self, a: T) -> T:
        """1.0 where a > 0, else 0.0; between them where 0 < a < 1 / LARGE."""
        ...

    def sigmoid(self, a: T) -> T:
        """1 / (1 + exp(-a))."""
        ...

    def sqrt(self, a: T) -> T:
        """The square root."""
        ...

    def abs(self, a: T) -> T:
        """|a|."""
        ...

    def log(self, a: T) -> T:
        """The natural logarithm."""
        ...

    def clip(self, a: T, low: float, high: float) -> T:
        """A, not below `low` and not above `high`."""
        ...

    def max(self, a: T) -> T:
        """The largest over the columns, [columns, R] → [1, R]."""
        ...

    def sort(self, a: T) -> T:
        """Sorted over the columns, the largest first."""
        ...

    def is_nan(self, a: T) -> T:
        """Whether each is NaN."""
        ...

    def less_equal(self, a: T, b: T) -> T:
        """Whether a ≤ b."""
        ...

    def where(self, condition: T, a: T, b: T) -> T:
        """A where the condition holds, else b."""
        ...

    def to_float(self, condition: T) -> T:
        """1.0 where the condition holds, else 0.0."""
        ...

    def transpose(self, a: T) -> T:
        """[columns, R] ↔ [R, columns]."""
        ...

    def concat(self, parts: Sequence[T]) -> T:
        """One below the other, along the columns."""
        ...

    def take(self, a: T, columns: NDArray[Any]) -> T:
        """The named columns, in that order."""
        ...

    def embed(self, table: T, index: T) -> T:
        """Rows of table [N, e] by index [K, R], as [K · e, R]."""
        ...

    def flatten(self, a: T) -> T:
        """[1, R] → [R]."""
        ...
