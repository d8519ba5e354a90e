"""Vectorized updates of the decayed sums of viewers and candidates.

Shapes: n rows, which may repeat; U distinct rows; S sums that an event changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.slots import F64, I64, Sum


@dataclass(frozen=True)
class Effect:
    """Columns that an event changes in the sums of one entity, and their rates of decay, `[S]`."""

    columns: I64
    rates: F64

    @classmethod
    def of(cls, event: str, sums: Sequence[Sum]) -> Effect | None:
        """Return the effect of an event on these sums; None if it changes none of them."""
        columns = np.array([i for i, s in enumerate(sums) if s.event == event], np.int64)
        return cls(columns, np.array([1.0 / sums[i].half_life_ms for i in columns])) if len(columns) else None

    def add(self, table: Any, rows: I64, ts_ms: I64, times: I64 | None = None) -> None:
        """Add the event to each row `[n]` at `ts_ms` `[n]`, `times` `[n]` times; skip row 0."""
        if not rows.all():
            known = rows > 0
            rows, ts_ms, times = rows[known], ts_ms[known], None if times is None else times[known]
            if not len(rows):
                return
        cells: Any = self.columns
        group: I64 | slice = slice(None)
        if len(rows) == 1:
            # Fast path: a single row needs no grouping, which halves its time.
            table, last_ms = table[rows[0]], ts_ms
        else:
            unique, group, last_ms = _grouped(rows, ts_ms)
            cells = unique[:, None], self.columns
            last_ms, ts_ms = last_ms[:, None], ts_ms[:, None]
        old_ms = table["sums_ms"][cells]
        new_ms = np.maximum(old_ms, last_ms)
        # A late event counts at its own time, so it is added in decayed form.
        arrived = np.exp2((ts_ms - new_ms[group]) * self.rates)
        if times is not None:
            arrived = arrived * times[:, None]
        if isinstance(group, np.ndarray):
            arrived = _summed(arrived, group, len(new_ms))
        table["sums"][cells] = table["sums"][cells] * np.exp2((old_ms - new_ms) * self.rates) + arrived
        table["sums_ms"][cells] = new_ms


def _grouped(rows: I64, ts_ms: I64) -> tuple[I64, I64 | slice, I64]:
    """Return the distinct rows `[U]`, the index of each row in them (all if none repeats), and the
    last time of each distinct row `[U]`.
    """
    if len(set(rows.tolist())) == len(rows):
        return rows, slice(None), ts_ms
    unique, group = np.unique(rows, return_inverse=True)
    last_ms = np.full(len(unique), np.iinfo(np.int64).min)
    np.maximum.at(last_ms, group, ts_ms)
    return unique, group, last_ms


def _summed(arrived: F64, group: I64, num_rows: int) -> NDArray[Any]:
    """Sum `[n, S]` by the index of the row: `[U, S]`."""
    num_sums = arrived.shape[1]
    places = group[:, None] * num_sums + np.arange(num_sums)
    sums = np.bincount(places.ravel(), arrived.ravel(), num_rows * num_sums)
    return sums.reshape(num_rows, num_sums)
