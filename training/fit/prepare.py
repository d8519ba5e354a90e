"""Prepare a fit's training and validation rows from a log, in memory or spilled to disk."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.random import default_rng
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.contract.validation import spelled
from serve.features.matrix import Matrix
from serve.features.rows import Schema
from serve.features.slots import I64
from serve.features.surface import Surface
from serve.log.reader import Log, read_joined
from serve.model.encoder import Encoder
from serve.storage.memory import available_bytes
from training.data.dataset import Dataset, DatasetPlan, Progress, concat, evenly
from training.data.doubts import BOTH_LABELS
from training.data.draws import drawn_weights, served_arms
from training.data.encoding import category_strings, fit_encoder
from training.data.stream import Spill, Streamed
from training.examination.estimate import examine_each
from training.examination.examination import Examination, at_positions
from training.network.network import Inputs, inputs
from training.terminal import print_progress

# Validate on the last tenth of the log by time.
SHARES = {"training": 0.9, "validation": 0.1}
# Bound the validation rows of a spilled log, which stay in memory.
MAX_VALIDATION = 500_000
# Bound the rows from which the encoder of a spilled log is fitted.
MAX_SAMPLE = 500_000
# Rows whose features are computed before they are written to disk.
ROWS_PER_PART = 131_072


@dataclass(frozen=True)
class Prepared:
    """Training rows for `training.fit.trainer.train`, and validation rows in memory."""

    train: Inputs | Streamed
    valid: Dataset
    # The training rows with their features; None if they are streamed.
    rows: Dataset | None
    # Training rows, evenly spaced from the first to the last.
    sample: Matrix
    encoder: Encoder
    # Of each outcome.
    examinations: Sequence[Examination]
    # Times of the first and the last training row.
    span_ms: tuple[int, int]


@contextlib.contextmanager
def prepare(
    surface: Surface,
    log: Path,
    storage: Path,
    *,
    memory_bytes: int | None = None,
    progress: Progress = lambda share: None,
) -> Iterator[Prepared]:
    """Prepare the rows of a log; the last tenth by time is for validation.

    Rows are spilled to a folder in `storage` if they would take more than `memory_bytes` in memory
    (default: half of the free memory), and deleted when the block ends. Encoder and examinations
    are fitted to all training rows, or to random slates of spilled ones. With spilled rows at most
    MAX_VALIDATION validation rows are kept, in whole slates.

    Raises:
        TabrankError: if the log is invalid or too short.
    """
    folder = storage.resolve() / "fit-rows"
    # Remove what a killed fit has left.
    shutil.rmtree(folder, ignore_errors=True)
    try:
        table, plan = read_plan(Schema(surface), log)
        if len(plan) * row_bytes(plan) <= (memory_bytes or available_bytes() // 2):
            prepared = _in_memory(surface, table, plan, progress)
        else:
            prepared = _spilled(surface, table, plan, folder, progress)
        del table, plan
        pa.default_memory_pool().release_unused()
        yield prepared
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_plan(schema: Schema, log: Path, newest_ms: float = np.inf) -> tuple[Log, DatasetPlan]:
    """Read a log, and return the plan of its rows, with what was random in their order."""
    table = read_joined(log, schema.surface, print_progress)
    weights, arms = drawn_weights(log, table), served_arms(log, table)
    return table, DatasetPlan(schema, table, weights=weights, arms=arms, newest_ms=newest_ms)


# Training rows kept to describe their distribution: enough for shares accurate to 0.002.
MAX_ROWS = 50_000


def take_evenly(matrix: Matrix, most: int = MAX_ROWS) -> Matrix:
    """Return at most `most` rows, evenly spaced from the first to the last."""
    return matrix.rows(evenly(len(matrix.numeric), most))


def _in_memory(surface: Surface, log: Log, plan: DatasetPlan, progress: Progress) -> Prepared:
    (data,) = plan.parts(len(plan), progress)
    train, valid = split_by_time(data, SHARES, surface)
    encoder = fit_encoder(surface, train.columns, train.matrix, category_strings(surface, log))
    examinations = examine_each(train, encoder, surface)
    span_ms = (int(train.ts_ms[0]), int(train.ts_ms[-1]))
    # Copy, so that the validation rows do not keep the training rows' features in memory.
    held = valid.take(np.arange(len(valid)))
    rows = encode_rows(encoder, train, examinations)
    seen = take_evenly(train.matrix)
    return Prepared(rows, held, train, seen, encoder, examinations, span_ms)


def _spilled(surface: Surface, log: Log, plan: DatasetPlan, folder: Path, progress: Progress) -> Prepared:
    """Write the features of each part to disk; then encode them with the encoder of a sample."""
    cut = int(_cuts(plan.ts_ms, SHARES)[0])
    cut_ms = plan.ts_ms[cut]
    windows_ms = [outcome.within_ms for outcome in surface.predicted.values()]
    early_ms = cut_ms - min(windows_ms)
    num_train = int(np.searchsorted(plan.ts_ms, early_ms))
    every = -(-(len(plan) - cut) // MAX_VALIDATION)
    # Slates with a lower number are in the sample.
    chance = default_rng(0).random(len(plan.request_ids))
    sample, valid, raw = [], [], []
    num_slates, counts = 0, np.zeros((2, len(windows_ms)), np.int64)
    (folder / "raw").mkdir(parents=True)
    for number, part in enumerate(plan.parts(ROWS_PER_PART, lambda share: progress(0.9 * share))):
        num_early, late = np.searchsorted(part.ts_ms, (early_ms, cut_ms))
        if late < len(part):
            kept = part.take(slice(late, None))
            slates = num_slates + np.cumsum(np.diff(kept.slate, prepend=-1) != 0) - 1
            valid.append(kept.take(np.flatnonzero(slates % every == 0)))
            num_slates = int(slates[-1]) + 1
        if num_early:
            kept = masked(part.take(slice(num_early)), cut_ms, windows_ms)
            sample.append(kept.take(np.flatnonzero(chance[kept.slate] * num_train <= MAX_SAMPLE)))
            raw.append(folder / "raw" / f"{number}.npz")
            np.savez(raw[-1], **vars(kept.matrix), outcomes=kept.outcomes, position=kept.position)
            counts += _counts(kept.outcomes)
    held = concat(valid)
    _check_labels("training", surface, counts)
    _check_labels("validation", surface, _counts(held.outcomes[:, :1]))
    sampled = concat(sample)
    encoder = fit_encoder(surface, plan.columns, sampled.matrix, category_strings(surface, log))
    examinations = examine_each(sampled, encoder, surface)
    spill = Spill(folder / "inputs", num_train, len(encoder.input_names), len(windows_ms))
    for number, path in enumerate(raw):
        with np.load(path) as part:
            encoded = encoder.encode(part["numeric"], part["category"])
            rows = inputs(encoder, encoded, part["outcomes"], at_positions(examinations, part["position"]))
        path.unlink()
        spill.add(rows)
        progress(0.9 + 0.1 * (number + 1) / len(raw))
    span_ms = (int(plan.ts_ms[0]), int(plan.ts_ms[num_train - 1]))
    seen = take_evenly(sampled.matrix)
    return Prepared(spill.streamed(), held, None, seen, encoder, examinations, span_ms)


def encode_rows(encoder: Encoder, data: Dataset, examinations: Sequence[Examination]) -> Inputs:
    """Return the rows of a dataset as the training loop reads them."""
    encoded = encoder.encode(data.matrix.numeric, data.matrix.category)
    return inputs(encoder, encoded, data.outcomes, at_positions(examinations, data.position))


def split_by_time(data: Dataset, shares: Mapping[str, float], surface: Surface) -> list[Dataset]:
    """Split the rows by time into parts of these shares, as views; rows of one time stay together.

    An outcome whose window reaches into the next part is not known, because it would come from the
    time of that part. Rows are left out where that is so of all outcomes.

    Raises:
        TabrankError: naming the part that does not hold both labels.
    """
    cuts = _cuts(data.ts_ms, shares).tolist()
    windows_ms = [outcome.within_ms for outcome in surface.predicted.values()]
    parts: list[Dataset] = []
    for name, begin, end in zip(shares, [0, *cuts], [*cuts, len(data)], strict=True):
        part = data.take(slice(begin, end))
        if end < len(data):
            num_early = int(np.searchsorted(part.ts_ms, data.ts_ms[end] - min(windows_ms)))
            part = masked(part.take(slice(num_early)), int(data.ts_ms[end]), windows_ms)
        # The first part trains every outcome; of the others, the primary one decides.
        _check_labels(name, surface, _counts(part.outcomes[:, :1] if parts else part.outcomes))
        parts.append(part)
    return parts


def masked(rows: Dataset, end_ms: int, windows_ms: Sequence[int]) -> Dataset:
    """Return the rows without the outcomes whose windows reach to `end_ms`."""
    is_open = rows.ts_ms[:, None] >= end_ms - np.array(windows_ms)
    return replace(rows, outcomes=np.where(is_open, np.float32(np.nan), rows.outcomes))


def _cuts(ts_ms: I64, shares: Mapping[str, float]) -> I64:
    """Return the first row of each part except the first."""
    ends = np.cumsum(list(shares.values()))[:-1]
    return np.asarray(np.searchsorted(ts_ms, np.quantile(ts_ms, ends, method="lower")), np.int64)


def _counts(outcomes: NDArray[np.float32]) -> I64:
    """Return at how many rows each outcome happens, and at how many not, [2, O]."""
    return np.stack([(outcomes > 0).sum(axis=0), (outcomes == 0).sum(axis=0)])


def _check_labels(name: str, surface: Surface, counts: I64) -> None:
    """Raise TabrankError unless each outcome counted happens at some rows, and not at others."""
    for (outcome, declared), counted in zip(surface.predicted.items(), counts.T, strict=False):
        positives, negatives = counted
        if not (positives and negatives):
            raise TabrankError(
                f"of the {name} rows, {positives + negatives} are older than the window of the outcome {outcome!r}, "
                f"{spelled(declared.within_ms / 1000)}, and {positives} of them have it; {BOTH_LABELS}: give a longer "
                "log, more days or a shorter within"
            )


def row_bytes(plan: DatasetPlan) -> int:
    """Estimate the bytes of a row in memory.

    The features count twice, as built and as split, then the encoded row.
    """
    columns = plan.columns
    numeric, category, single = len(columns.numeric), columns.num_category, len(columns.single)
    # Label, slate, viewer, candidate, time, position and two counts.
    about = 8 * 8
    hot = 32 * len(columns.multi)
    return 2 * (4 * numeric + 8 * category + about) + 8 * single + 4 * hot + 4 * (2 * numeric + hot + single)
