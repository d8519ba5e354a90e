"""Compaction: many small segments of the served log become few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serve.log.atomic_files import put
from serve.log.reader import TABLES
from serve.log.segments import last_seq, segments
from serve.log.throttle import Step

MAX_BYTES = 64 << 20  # of a merged segment, about
DONE_BYTES = MAX_BYTES // 2  # one of so much is merged no more: else each hour would write all of it again
WORTH_SEGMENTS = 60  # of a table: an hour of them
AT_ONCE_BYTES = 4 << 20  # held in memory, uncompressed; what a row group of a merged segment has
# Read so many rows at a time: an exposure of 1,000 ids of 256 characters has up to 1 MiB, so 64 MiB at most. An event
# has up to 4 KiB, and there are many.
AT_ONCE_ROWS = {"events": 2_048}
AT_ONCE_LONG_ROWS = 64


def compact(log: Path, cuts: Sequence[int] = (), step: Step = lambda: True) -> None:
    """Merge neighbouring segments where there are many or enough of them; none across a number of `cuts`.

    The merged one takes the place of its first, then the others are deleted. Who reads or dies in between finds
    records twice: readers drop those of a number that was there before. `step` is called after each part.

    Raises:
        OSError, pa.ArrowException, TabrankError: a segment cannot be read or written; the log is as it was, or
            holds some records twice.
    """
    for name in TABLES:
        for group in _worth(segments(log, name), cuts):
            _merge(group, step)


def _worth(paths: Sequence[Path], cuts: Sequence[int]) -> Iterator[list[Path]]:
    """Neighbours that fill a segment, or reach a cut, or are as many as are worth it."""
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
    if len(group) >= WORTH_SEGMENTS:
        yield group


def _part(path: Path, cuts: Sequence[int]) -> int:
    """Between which cuts a segment begins."""
    return sum(cut < int(path.stem) for cut in cuts)


def _merge(paths: Sequence[Path], step: Step) -> None:
    held = 0
    parts: list[Path] = []
    for path in paths:
        last = last_seq(path)
        if last <= held:  # left by a compaction that was cut short
            path.unlink()
            continue
        held = last
        parts.append(path)
    for schema, same in groupby(parts, key=pq.read_schema):  # a surface may have gained a field
        first, *others = same
        if others:
            draft = first.with_name(f".{first.name}.partial")
            try:
                with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
                    for table in _tables([first, *others], schema):
                        writer.write_table(table)
                        step()
                put(draft, first)
            finally:
                draft.unlink(missing_ok=True)
            for path in others:
                path.unlink()


def _tables(paths: Iterable[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """Their rows in order, in tables of a row group each."""
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
