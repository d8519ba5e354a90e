"""Vectorized updates of the decayed sums of viewers and candidates.

Shapes: n rows, which may repeat; U distinct rows; S sums that an event changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.slots import F64, Sum

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Effect:
    """Columns that an event changes in the sums of one entity, and their increments, `[S]`."""

    columns: I64
    weights: F64
    rates: F64

    @classmethod
    def of(cls, event: str, sums: Sequence[Sum]) -> Effect | None:
        """Return the effect of an event on these sums; None if it changes none of them."""
        weights = np.array([sum(w for name, w in s.weights if name == event) for s in sums])
        columns = weights.nonzero()[0]
        rates = np.array([1.0 / s.half_life_ms for s in sums])
        return cls(columns, weights[columns], rates[columns]) if len(columns) else None

    def add(self, table: Any, rows: I64, ts_ms: I64, times: I64 | None = None) -> None:
        """Add the event to each row `[n]` at `ts_ms` `[n]`, `times` `[n]` times; skip row 0."""
        if not rows.all():
            known = rows > 0
            rows, ts_ms, times = rows[known], ts_ms[known], None if times is None else times[known]
            if not len(rows):
                return
        weights = self.weights if times is None else self.weights * times[:, None]
        cells: Any
        # Fast path: a single row needs no grouping, which halves its time.
        if len(rows) == 1:
            table, cells, inverse, last_ms = table[rows[0]], self.columns, None, ts_ms
        else:
            unique, inverse, last_ms = _grouped(rows, ts_ms)
            cells = unique[:, None], self.columns
            last_ms, ts_ms = last_ms[:, None], ts_ms[:, None]
        value, value_ms = table["sums"], table["sums_ms"]
        old_ms = value_ms[cells]
        new_ms = np.maximum(old_ms, last_ms)
        # A late event counts at its own time, so it is added in decayed form.
        arrived = weights * np.exp2((ts_ms - (new_ms if inverse is None else new_ms[inverse])) * self.rates)
        if inverse is not None:
            places = inverse[:, None] * len(self.columns) + np.arange(len(self.columns))
            arrived = np.bincount(places.ravel(), arrived.ravel(), new_ms.size).reshape(new_ms.shape)
        value[cells] = value[cells] * np.exp2((old_ms - new_ms) * self.rates) + arrived
        value_ms[cells] = new_ms


def _grouped(rows: I64, ts_ms: I64) -> tuple[I64, I64 | None, I64]:
    """Return the distinct rows `[U]`, the index of each row in them (None if all are distinct), and
    the last time of each distinct row `[U]`.
    """
    if len(rows) == 1 or len(set(rows.tolist())) == len(rows):
        return rows, None, ts_ms
    unique, inverse = np.unique(rows, return_inverse=True)
    last_ms = np.full(len(unique), np.iinfo(np.int64).min)
    np.maximum.at(last_ms, inverse, ts_ms)
    return unique, inverse, last_ms
