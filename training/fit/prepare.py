"""Prepare a fit's training and validation rows from a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.contract.validation import spelled
from serve.features.matrix import Matrix
from serve.features.rows import Schema
from serve.features.surface import Surface
from serve.log.reader import read_joined
from serve.model.encoder import Encoder
from training.data.dataset import Dataset, Progress, build, evenly, sample
from training.data.doubts import BOTH_LABELS
from training.data.draws import drawn_weights, served_arms
from training.data.encoding import category_strings, fit_encoder
from training.data.scratch import empty, in_parts
from training.examination.estimate import examine_each
from training.examination.examination import Examination, at_positions
from training.network.network import Inputs, inputs
from training.terminal import print_progress

# The last tenth of the log by time is for validation.
SHARES = {"training": 0.9, "validation": 0.1}
# Most validation rows. This bounds the time to score a model after each epoch, and the memory.
MAX_VALIDATION = 500_000


@dataclass(frozen=True)
class Prepared:
    """The training and validation rows, also in the form for `training.fit.trainer.train`."""

    rows: Dataset
    train: Inputs
    valid: Dataset
    # The number of validation rows, of which `valid` may be a sample.
    num_valid: int
    encoder: Encoder
    # The examination of positions for each outcome.
    examinations: Sequence[Examination]


def prepare(surface: Surface, log: Path, progress: Progress = lambda share: None) -> Prepared:
    """Prepare the rows of a log. The last tenth by time is for validation.

    At most MAX_VALIDATION validation rows are kept, in whole slates, evenly over time. Encoder and
    examinations are fitted to the training rows.

    Raises:
        TabrankError: the log is invalid or too short.
    """
    data, strings = read_dataset(Schema(surface), log, progress)
    rows, valid = split_by_time(data, SHARES, surface)
    encoder = fit_encoder(surface, rows.columns, rows.matrix, strings)
    examinations = examine_each(rows, encoder, surface)
    train = encode_rows(encoder, rows, examinations)
    return Prepared(rows, train, sample(valid, MAX_VALIDATION), len(valid), encoder, examinations)


def read_dataset(
    schema: Schema, log: Path, progress: Progress, newest_ms: float = np.inf
) -> tuple[Dataset, dict[int, str]]:
    """Read the rows of a log, which know what was random in it, and its category strings."""
    table = read_joined(log, schema.surface, print_progress)
    weights, arms = drawn_weights(log, table), served_arms(log, table)
    data = build(schema, table, weights=weights, arms=arms, newest_ms=newest_ms, progress=progress)
    strings = category_strings(schema.surface, table)
    del table
    pa.default_memory_pool().release_unused()
    return data, strings


# This many training rows describe their distribution. With them, shares are accurate to 0.002.
MAX_ROWS = 50_000


def take_evenly(matrix: Matrix, most: int = MAX_ROWS) -> Matrix:
    """Return at most `most` rows, evenly spaced from the first to the last."""
    return matrix.rows(evenly(len(matrix.numeric), most))


def encode_rows(encoder: Encoder, data: Dataset, examinations: Sequence[Examination]) -> Inputs:
    """Return the rows of a dataset as the training loop reads them. Large arrays lie in files."""
    shapes = (len(encoder.input_names), len(examinations), len(examinations))
    x, label, examination = (empty((len(data), width), np.float32) for width in shapes)
    for part in in_parts(len(data)):
        encoded = encoder.encode(data.matrix.numeric[part], data.matrix.category[part])
        theta = at_positions(examinations, data.position[part])
        x[part] = inputs(encoder, encoded, data.outcomes[part], theta).x
        label[part], examination[part] = data.outcomes[part], theta
    return Inputs(*map(torch.from_numpy, (x, label, examination)))


def split_by_time(data: Dataset, shares: Mapping[str, float], surface: Surface) -> list[Dataset]:
    """Split the rows by time into parts of these shares, as views. Rows of one time stay together.

    An outcome whose window reaches into the next part counts as unknown, because the events may
    come from the time of that part. Rows for which all outcomes are unknown are left out.

    Raises:
        TabrankError: a part does not hold both labels; the message names it.
    """
    ends = np.cumsum(list(shares.values()))[:-1]
    cuts = np.searchsorted(data.ts_ms, np.quantile(data.ts_ms, ends, method="lower")).tolist()
    windows_ms = [outcome.within_ms for outcome in surface.predicted.values()]
    parts: list[Dataset] = []
    for name, begin, end in zip(shares, [0, *cuts], [*cuts, len(data)], strict=True):
        part = data.take(slice(begin, end))
        if end < len(data):
            num_early = int(np.searchsorted(part.ts_ms, data.ts_ms[end] - min(windows_ms)))
            part = masked(part.take(slice(num_early)), int(data.ts_ms[end]), windows_ms)
        # The first part trains every outcome. In the others, the primary one decides.
        _check_labels(name, surface, part.outcomes[:, :1] if parts else part.outcomes)
        parts.append(part)
    return parts


def masked(rows: Dataset, end_ms: int, windows_ms: Sequence[int]) -> Dataset:
    """Return the rows without the outcomes whose windows reach to `end_ms`."""
    is_open = rows.ts_ms[:, None] >= end_ms - np.array(windows_ms)
    return replace(rows, outcomes=np.where(is_open, np.float32(np.nan), rows.outcomes))


def _check_labels(name: str, surface: Surface, outcomes: NDArray[np.float32]) -> None:
    """Raise TabrankError unless each outcome [N, O] happens at some rows but not at all."""
    for (outcome, declared), label in zip(surface.predicted.items(), outcomes.T, strict=False):
        positives, negatives = (label > 0).sum(), (label == 0).sum()
        if not (positives and negatives):
            raise TabrankError(
                f"of the {name} rows, {positives + negatives} are older than the window of the outcome {outcome!r}, "
                f"{spelled(declared.within_ms / 1000)}, and {positives} of them have it; {BOTH_LABELS}: give more days"
            )
