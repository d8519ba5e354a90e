"""Compaction: merge small segments of the served log into large ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serve.log.reader import TABLES
from serve.log.segments import draft_segment, last_record, segments
from serve.log.throttle import OnStep

# Approximate size of a merged segment.
MAX_BYTES = 64 << 20
# Do not merge a segment of this size again: otherwise every hour would rewrite it.
DONE_BYTES = MAX_BYTES // 2
# Merge once a table has this many small segments: an hour of them.
MIN_SEGMENTS = 60
# Uncompressed bytes held in memory, and the size of a row group of a merged segment.
AT_ONCE_BYTES = 4 << 20
# Rows read at a time. An exposure of 1,000 ids of 256 characters has up to 1 MiB, so 64 of them
# take at most 64 MiB. An event has up to 4 KiB.
AT_ONCE_ROWS = {"events": 2_048}
AT_ONCE_LONG_ROWS = 64


def compact(log: Path, cuts: Sequence[int] = (), step: OnStep = lambda: True) -> None:
    """Merge neighbouring segments that are numerous or fill one, but never across a cut.

    `cuts` are record numbers, those of snapshots.

    The merged segment replaces its first part, then the other parts are deleted. In between, and
    after a crash, the log holds some records twice; readers drop repeated numbers. `step` is called
    after each part of the work.

    Raises:
        OSError, pa.ArrowException, TabrankError: a segment cannot be read or written; the log is
            unchanged, or holds some records twice.
    """
    for name in TABLES:
        for group in _mergeable(segments(log, name), cuts):
            _merge(group, step)


def _mergeable(paths: Sequence[Path], cuts: Sequence[int]) -> Iterator[list[Path]]:
    """Yield groups of neighbours that fill a segment, end at a cut, or are numerous enough."""
    group: list[Path] = []
    total = 0
    for path in paths:
        size = path.stat().st_size
        is_apart = bool(group) and _part(group[0], cuts) != _part(path, cuts)
        if is_apart or size >= DONE_BYTES or total + size > MAX_BYTES:
            if len(group) > 1:
                yield group
            group, total = [], 0
        if size < DONE_BYTES:
            group.append(path)
            total += size
    if len(group) >= MIN_SEGMENTS:
        yield group


def _part(path: Path, cuts: Sequence[int]) -> int:
    """Return the number of cuts before a segment's first record."""
    return sum(cut < int(path.stem) for cut in cuts)


def _merge(paths: Sequence[Path], step: OnStep) -> None:
    held = 0
    parts: list[Path] = []
    for path in paths:
        last, _ = last_record(path)
        # A leftover of an interrupted compaction.
        if last <= held:
            path.unlink()
            continue
        held = last
        parts.append(path)
    # Schemas differ if the surface gained a field.
    for schema, same in groupby(parts, key=pq.read_schema):
        first, *others = same
        if others:
            with draft_segment(first, schema) as writer:
                for table in _tables([first, *others], schema):
                    writer.write_table(table)
                    step()
            for path in others:
                path.unlink()


def _tables(paths: Iterable[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of segments in order, as tables of one row group each."""
    batches: list[pa.RecordBatch] = []
    num_bytes = 0
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(AT_ONCE_ROWS.get(path.parent.name, AT_ONCE_LONG_ROWS)):
                batches.append(batch)
                num_bytes += batch.nbytes
                if num_bytes >= AT_ONCE_BYTES:
                    yield pa.Table.from_batches(batches, schema)
                    batches, num_bytes = [], 0
    if batches:
        yield pa.Table.from_batches(batches, schema)
