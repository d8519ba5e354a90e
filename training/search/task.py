"""The input of a search: its settings, the log's rows split by time, and what all models share."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from serve.contract.errors import TabrankError
from serve.contract.validation import UNITS_MS
from serve.features.rows import Schema
from serve.features.surface import Surface
from serve.model.encoder import Encoder
from training.data.dataset import Dataset, Progress, sample
from training.data.encoding import fit_encoder
from training.evaluation.foresight import doubted
from training.examination.estimate import examine_each
from training.examination.examination import Examination
from training.fit.loop import FitConfig
from training.fit.prepare import read_dataset, split_by_time

# How the rows are split by time. Validation rows compare models; test rows evaluate the winner
# only.
SHARES = {"training": 0.8, "validation": 0.1, "test": 0.1}
# Increment this when the files of a search's folder change, so that no search resumes from old
# ones.
FOLDER_FORMAT = 2
# At most this many validation rows are used, which bounds the time to score a model after each
# epoch.
MAX_VALID_ROWS = 200_000


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search. `budget_s` and `max_trials` bound all its calls together."""

    budget_s: float
    # The largest serving cost of the winner, in µs per candidate.
    max_us: float | None = None
    # How many networks like the winner, with other seeds, teach the one that is written.
    num_teachers: int = 0
    seed: int = 0
    # Only rows of this many days before the log's end are used. Older events still build the state.
    days: float | None = None
    # The folder of published artifacts. The search starts from the current one, and a winner that
    # passes is published there.
    models: Path | None = None
    # Whether to start again if the folder holds a search that has ended, or one over other rows.
    restart: bool = False
    max_trials: int | None = None

    def __post_init__(self) -> None:
        if self.max_us is not None and not 0 < self.max_us < math.inf:
            raise TabrankError(f"--max-us-per-candidate {self.max_us:g}: must be a finite number above 0")
        if self.days is not None and not self.days > 0:
            raise TabrankError(f"--days {self.days:g}: must be above 0")


@dataclass(frozen=True)
class Task:
    """The rows of a log and the settings of a search. No trial changes the settings in `base`."""

    schema: Schema
    data: Dataset
    strings: dict[int, str]
    base: FitConfig
    settings: SearchSettings
    log: Path

    @classmethod
    def read(cls, surface: Surface, log: Path, settings: SearchSettings, progress: Progress) -> Task:
        """Read the task from a log.

        Raises:
            TabrankError: the log is bad or too short.
        """
        newest_ms = math.inf if settings.days is None else settings.days * UNITS_MS["d"]
        schema = Schema(surface)
        data, strings = read_dataset(schema, log, progress, newest_ms)
        return cls(schema, data, strings, FitConfig(seed=settings.seed), settings, log)

    @cached_property
    def parts(self) -> dict[str, Dataset]:
        """Return the rows for training, validation and test."""
        parts = split_by_time(self.data, SHARES, self.schema.surface)
        return dict(zip(SHARES, parts, strict=True))

    @cached_property
    def valid(self) -> Dataset:
        """Return the validation rows that compare the models: all of them, or a sample.

        As in an evaluation, rows that requests pinned are not among them.
        """
        return sample(self.parts["validation"].unpinned(), MAX_VALID_ROWS)

    @cached_property
    def before(self) -> Dataset:
        """Return all rows before the test rows."""
        shares = {"training": SHARES["training"] + SHARES["validation"], "test": SHARES["test"]}
        return split_by_time(self.data, shares, self.schema.surface)[0]

    @cached_property
    def encoder(self) -> Encoder:
        """Return the encoder of the training rows, which trials and rivals share."""
        return self.encoder_of(self.parts["training"])

    def encoder_of(self, rows: Dataset) -> Encoder:
        """Fit an encoder to these rows only."""
        return fit_encoder(self.schema.surface, rows.columns, rows.matrix, self.strings)

    @cached_property
    def examinations(self) -> list[Examination]:
        """Return the examination of each outcome from the training rows, which all models use."""
        return examine_each(self.parts["training"], self.encoder, self.schema.surface)

    @cached_property
    def suspects(self) -> list[str]:
        """Return what must be answered about columns before a model is published."""
        return doubted(self.parts["training"].of(0), self.schema.surface)

    @cached_property
    def identity(self) -> str:
        """Return a digest of what all trials share: surface, rows, seed and `FOLDER_FORMAT`."""
        data = self.data
        shared = f"{FOLDER_FORMAT} {self.schema.surface.fingerprint} {self.base.seed}"
        digest = hashlib.sha256(shared.encode())
        # With another examination, trials would be compared by another criterion.
        digest.update(repr([examination.theta for examination in self.examinations]).encode())
        for array in (data.outcomes, data.ts_ms, data.position, data.matrix.numeric, data.matrix.category):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]
