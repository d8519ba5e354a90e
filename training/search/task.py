"""What a search is over: the rows in three parts by time, and what every model of it shares."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from serve.contract.errors import TabrankError
from serve.contract.validation import UNITS_MS
from serve.features.rows import Schema
from serve.features.surface import Surface
from serve.log.reader import read_log
from serve.model.encoder import Encoder
from training.data.dataset import Dataset, Plan
from training.data.encoding import category_strings, fit_encoder
from training.data.prepare import available_bytes, by_time, row_bytes
from training.fit.loop import FitConfig

SHARES = {"training": 0.8, "validation": 0.1, "test": 0.1}
"""Of the rows by time: models are compared on validation rows, the winner alone is measured on test rows."""
MOST_VALID_ROWS = 200_000


@dataclass(frozen=True)
class Task:
    """The rows of a log for a search; `base` is what no trial changes of a configuration."""

    schema: Schema
    data: Dataset
    strings: dict[int, str]
    base: FitConfig
    most_us: float | None
    """µs a candidate that the winner may take."""
    num_teachers: int = 0
    """Networks of the winner's kind whose mean teaches the one that is written."""

    @classmethod
    def read(
        cls,
        surface: Surface,
        log: Path,
        base: FitConfig,
        *,
        most_us: float | None,
        num_teachers: int,
        days: float | None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> Task:
        """The task of a log, of the rows of its newest `days` where they are given.

        Raises:
            TabrankError: for a bad log, one that is too short, or one whose rows do not fit in memory.
        """
        if days is not None and not days > 0:
            raise TabrankError(f"--days {days:g}: must be above 0")
        table, schema = read_log(log, surface), Schema(surface)
        plan = Plan(schema, table)
        need, have = len(plan) * row_bytes(plan), available_bytes()
        if need > have:
            raise TabrankError(
                f"{log}: a search over its {len(plan):,} rows would take {need / 2**30:.1f} GiB of memory, and "
                f"{have / 2**30:.1f} are free; search in a part of the log, or fit without a search"
            )
        (data,) = plan.parts(len(plan), progress)
        if days is not None:
            data = data.take(
                slice(int(np.searchsorted(data.ts_ms, data.ts_ms[-1] - days * UNITS_MS["d"])), None)
            )
        return cls(schema, data, category_strings(surface, table), base, most_us, num_teachers)

    @cached_property
    def parts(self) -> dict[str, Dataset]:
        """The rows for training, validation and test."""
        parts = by_time(self.data, SHARES, self.schema.surface.label.within_ms)
        return dict(zip(SHARES, parts, strict=True))

    @cached_property
    def valid(self) -> Dataset:
        """The validation rows by which every model is compared: all, or a sample of them."""
        return sample(self.parts["validation"], MOST_VALID_ROWS)

    @cached_property
    def before(self) -> Dataset:
        """All rows before the test rows."""
        shares = {"training": SHARES["training"] + SHARES["validation"], "test": SHARES["test"]}
        return by_time(self.data, shares, self.schema.surface.label.within_ms)[0]

    @cached_property
    def encoder(self) -> Encoder:
        """Of the training rows, as the trials and their rivals see them."""
        return self.encoder_of(self.parts["training"])

    def encoder_of(self, rows: Dataset) -> Encoder:
        """The encoder of some rows, which alone it knows of."""
        return fit_encoder(self.schema.surface, rows.columns, rows.matrix, self.strings)

    @cached_property
    def identity(self) -> str:
        """Changes with the surface, the rows and the seed: with all that trials of one search share."""
        data = self.data
        digest = hashlib.sha256(f"{self.schema.surface.fingerprint} {self.base.seed}".encode())
        for array in (data.label, data.ts_ms, data.position, data.matrix.numeric, data.matrix.category):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def sample(data: Dataset, most: int) -> Dataset:
    """At most about so many rows: whole slates, evenly over time."""
    if len(data) <= most:
        return data
    slates = np.unique(data.slate)
    kept = slates[np.linspace(0, len(slates) - 1, max(1, len(slates) * most // len(data))).astype(np.int64)]
    return data.take(np.flatnonzero(np.isin(data.slate, kept)))
