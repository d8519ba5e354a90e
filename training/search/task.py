"""What a search is over: the rows in three parts by time, and what every model of it shares."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from serve.encoder import Encoder
from serve.log import read_log
from serve.state import Schema
from serve.strict import UNITS_MS
from serve.surface import Surface
from training.dataset import Dataset, build
from training.encoding import category_strings, fit_encoder
from training.loop import FitConfig
from training.prepare import by_time

SHARES = {"training": 0.8, "validation": 0.1, "test": 0.1}
"""Of the rows by time: models are compared on validation rows, the winner alone is measured on test rows."""


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
    ) -> Task:
        """The task of a log, of the rows of its newest `days` where they are given.

        Raises TabrankError for a bad log or one that is too short.
        """
        table, schema = read_log(log, surface), Schema(surface)
        data = build(schema, table)
        if days is not None:
            data = data.take(np.flatnonzero(data.ts_ms >= data.ts_ms[-1] - days * UNITS_MS["d"]))
        return cls(schema, data, category_strings(surface, table), base, most_us, num_teachers)

    @cached_property
    def parts(self) -> dict[str, Dataset]:
        """The rows for training, validation and test."""
        return dict(zip(SHARES, by_time(self.data, SHARES), strict=True))

    @cached_property
    def before(self) -> Dataset:
        """All rows before the test rows."""
        return self.data.take(np.arange(len(self.data) - len(self.parts["test"])))

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
        digest = hashlib.sha256(f"{self.schema.surface.fingerprint} {self.base.seed}".encode())
        for array in (self.data.label, self.data.ts_ms, self.data.popular):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def sample(data: Dataset, most: int) -> Dataset:
    """At most about so many rows: whole slates, evenly over time."""
    if len(data) <= most:
        return data
    slates = np.unique(data.slate)
    kept = slates[np.linspace(0, len(slates) - 1, max(1, len(slates) * most // len(data))).astype(np.int64)]
    return data.take(np.flatnonzero(np.isin(data.slate, kept)))
