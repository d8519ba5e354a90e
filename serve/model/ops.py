"""Array operations of the inference graph: implemented to compute, and to build ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

T = TypeVar("T")

LARGE = 1e30
"""Slope of a ramp that acts as a step: for a positive `a`, min(a · LARGE, 1) is 1."""


class Ops(Protocol[T]):
    """Operations on 2-D arrays [columns, rows] with NumPy's broadcasting.

    Reductions keep their axis. Comparisons return booleans, for `where` and `to_float`.
    """

    def constant(self, array: NDArray[Any]) -> T:
        """Constant array of the graph, which lives as long as the graph."""

    def scalar(self, value: float) -> T:
        """Constant number of the graph."""

    def add(self, a: T, b: T) -> T:
        """A + b."""

    def sub(self, a: T, b: T) -> T:
        """A - b."""

    def mul(self, a: T, b: T) -> T:
        """A · b, element by element."""

    def div(self, a: T, b: T) -> T:
        """A / b."""

    def matmul(self, a: T, b: T) -> T:
        """The matrix product."""

    def linear(self, weight: T, x: T, bias: T) -> T:
        """Weight [out, in] · x [in, R] + bias [out, 1], or [out, R]."""

    def relu(self, a: T) -> T:
        """max(a, 0)."""

    def positive(self, a: T) -> T:
        """1.0 where a > 0, else 0.0; between them where 0 < a < 1 / LARGE."""

    def sigmoid(self, a: T) -> T:
        """1 / (1 + exp(-a))."""

    def sqrt(self, a: T) -> T:
        """The square root."""

    def abs(self, a: T) -> T:
        """|a|."""

    def log(self, a: T) -> T:
        """The natural logarithm."""

    def clip(self, a: T, low: float, high: float) -> T:
        """A, limited to the range from `low` to `high`."""

    def max(self, a: T) -> T:
        """The maximum over the columns, [columns, R] → [1, R]."""

    def sort(self, a: T) -> T:
        """Sorted over the columns, descending."""

    def is_nan(self, a: T) -> T:
        """True where an element is NaN."""

    def less_equal(self, a: T, b: T) -> T:
        """True where a ≤ b."""

    def where(self, condition: T, a: T, b: T) -> T:
        """A where the condition holds, else b."""

    def to_float(self, condition: T) -> T:
        """1.0 where the condition holds, else 0.0."""

    def transpose(self, a: T) -> T:
        """[columns, R] ↔ [R, columns]."""

    def concat(self, parts: Sequence[T]) -> T:
        """Concatenation along the columns."""

    def take(self, a: T, columns: NDArray[Any]) -> T:
        """The given columns, in that order."""

    def embed(self, table: T, index: T) -> T:
        """Rows of table [N, e] by index [K, R], as [K · e, R]."""

    def flatten(self, a: T) -> T:
        """[1, R] → [R]."""
