"""Feature matrix of a batch, computed from rows of state; training and serving both use it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.batch import Batch
from serve.features.rows import Schema
from serve.features.slots import I64, U64, PackedRows, Values


@dataclass(frozen=True)
class Columns:
    """Names of the matrix's columns: numeric ones, single categories, and sets as (name, width)."""

    numeric: tuple[str, ...]
    single: tuple[str, ...]
    multi: tuple[tuple[str, int], ...]

    @property
    def num_category(self) -> int:
        """Return the number of category columns; a set has as many as its width."""
        return len(self.single) + sum(width for _, width in self.multi)

    @property
    def row_bytes(self) -> int:
        """Return the bytes that a candidate's row takes in a call of Scorer."""
        return 4 * len(self.numeric) + 8 * self.num_category

    def category_parts(self) -> Iterator[tuple[str, slice]]:
        """Yield the name and the category columns of each categorical feature."""
        at = 0
        for name, width in (*((name, 1) for name in self.single), *self.multi):
            yield name, slice(at, at + width)
            at += width


@dataclass(frozen=True)
class Matrix:
    """Features of R rows: `numeric` float32 `[R, F]` and `category` hashes uint64 `[R, K]`.

    Missing values are NaN and 0.
    """

    numeric: NDArray[np.float32]
    category: U64

    def rows(self, part: slice | NDArray[Any]) -> Matrix:
        """Return some rows by index or flag; those of a slice are a view."""
        return Matrix(self.numeric[part], self.category[part])

    @classmethod
    def stacked(cls, parts: Sequence[Matrix]) -> Matrix:
        """Return the rows of all parts, one after the other."""
        return cls(np.concatenate([m.numeric for m in parts]), np.concatenate([m.category for m in parts]))

    def to_bytes(self) -> bytes:
        """Pack the matrix, as three sizes and two arrays, for the call to `Scorer`."""
        sizes = np.array([len(self.numeric), self.numeric.shape[1], self.category.shape[1]], np.int64)
        return b"".join((sizes.tobytes(), self.category.tobytes(), self.numeric.tobytes()))

    @classmethod
    def from_bytes(cls, payload: bytes) -> Matrix:
        """Return the matrix that `to_bytes` packed, as read-only views without a copy."""
        num_rows, num_numeric, num_category = (int(n) for n in np.frombuffer(payload, np.int64, 3))
        category = np.frombuffer(payload, np.uint64, num_rows * num_category, 24)
        numeric = np.frombuffer(payload, np.float32, num_rows * num_numeric, 24 + category.nbytes)
        return cls(numeric.reshape(num_rows, num_numeric), category.reshape(num_rows, num_category))


class Features:
    """Features of a surface, in the order of their declaration."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        kinds = schema.surface.features
        categories = {name: kind for name, kind in kinds.items() if kind.categorical}
        widths = {name: kind.width(schema.surface.fields) for name, kind in categories.items()}
        single = [name for name, width in widths.items() if width is None]
        multi = [(name, width) for name, width in widths.items() if width is not None]
        self._numeric = {name: kind for name, kind in kinds.items() if not kind.categorical}
        self.columns = Columns(tuple(self._numeric), tuple(single), tuple(multi))
        self._categories = [(kinds[name], part) for name, part in self.columns.category_parts()]
        self.popular = self.columns.numeric.index(schema.surface.popular)

    def compute(
        self,
        viewers: PackedRows,
        candidates: PackedRows,
        context: PackedRows,
        request_of_row: I64,
        now_ms: I64,
        values: Values,
    ) -> Matrix:
        """Compute the matrix of a batch of requests.

        Args:
            viewers: `[B]` rows, one per request.
            candidates: `[R]` rows.
            context: `[B]` rows.
            request_of_row: `[R]`, the index of each row's request.
            now_ms: `[B]`, the time of each request.
            values: the values of the candidates' fields, as `CandidateRows.values_of` returns them.
        """
        batch = Batch(self.schema.state, viewers, candidates, context, request_of_row, now_ms, values)
        num_rows = len(request_of_row)
        numeric = np.empty((num_rows, len(self._numeric)), np.float32)
        for j, kind in enumerate(self._numeric.values()):
            numeric[:, j] = kind.value(batch)
        category = np.empty((num_rows, self.columns.num_category), np.uint64)
        for kind, part in self._categories:
            # Hashes `[R]`, or `[R, M]` of a set: transposed, both fit the columns.
            category.T[part] = kind.value(batch).T
        return Matrix(numeric, category)

    def popularity(
        self, candidates: PackedRows, context: PackedRows, request_of_row: I64, now_ms: I64, values: Values
    ) -> NDArray[np.float32]:
        """Return the popularity feature `[R]` as `compute` does, but without rows of viewers."""
        schema = self.schema
        viewers = schema.blank("viewer", len(now_ms))
        batch = Batch(schema.state, viewers, candidates, context, request_of_row, now_ms, values)
        return np.asarray(self._numeric[schema.surface.popular].value(batch), np.float32)
