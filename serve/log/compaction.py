"""Compaction: merge small segments of the served log into large ones."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve.contract.errors import TabrankError
from serve.log.reader import TABLES
from serve.log.segments import Segment, Segments, draft_segment, segments
from serve.log.throttle import OnStep
from serve.storage.parquet import bounded_batches, readable

log = logging.getLogger("tabrank")

# Approximate size of a merged segment.
MAX_BYTES = 64 << 20
# A segment of this size is not merged again; otherwise it would be rewritten every hour.
DONE_BYTES = MAX_BYTES // 2
# Segments are merged once a table has this many small ones, which an hour brings.
MIN_SEGMENTS = 60
# Limits the uncompressed bytes in memory, and so the size of a row group of a merged segment.
AT_ONCE_BYTES = 4 << 20
# How many rows are read at a time. An event has up to 4 KiB. A row of any other table may have as
# much as an exposure of 1,000 ids of 256 characters, up to 1 MiB, so 64 of them take at most 64
# MiB.
AT_ONCE_ROWS = {"events": 2_048}
AT_ONCE_LONG_ROWS = 64


def compact(served: Segments, cuts: Sequence[int] = (), step: OnStep = lambda: True) -> None:
    """Merge neighbouring segments, once they are many or fill a large one, but never across a cut.

    `cuts` are the record numbers of snapshots.

    A merged segment gets a name of its own, and then its parts are deleted. In between, and after a
    crash, the log holds some records twice; readers drop repeated numbers. `step` is called after
    each part of the work. A damaged segment is added to `damaged` and stays as it is; segments
    before it are not merged with those after it. Only the holder of the log's lease may call this.

    Raises:
        OSError: a segment cannot be read or written; the log is unchanged, or holds some records
            twice.
    """
    for name in TABLES:
        for group in _mergeable(_without_repeats(segments(served.folder, name)), cuts, served.damaged):
            try:
                # Segments have different schemas if the surface gained a field between them.
                for schema, same in groupby(group, key=lambda segment: pq.read_schema(segment.path)):
                    _merge(list(same), schema, served.epoch, step)
            except (TabrankError, pa.ArrowException, UnicodeDecodeError) as error:
                # Find the segment that cannot be read, so that the others are merged the next time.
                for segment in group:
                    with served.unless_damaged(segment.path), readable(segment.path):
                        deque(batches(segment.path), 0)
                log.warning("%s: segments are not merged: %s", served.folder / name, error)


def _without_repeats(found: Iterable[Segment]) -> Iterator[Segment]:
    """Yield a table's segments in order; delete those whose records another readable one holds.

    A merge or a takeover that was interrupted leaves such segments.
    """
    before: Segment | None = None
    for segment in found:
        if before and segment.last <= before.last:
            segment.path.unlink(missing_ok=True)
        else:
            yield segment
            before = segment


def _mergeable(
    found: Iterable[Segment], cuts: Sequence[int], damaged: Container[Path]
) -> Iterator[list[Segment]]:
    """Yield groups of neighbours that fill a segment, end at a cut, or are many enough."""
    group: list[Segment] = []
    total = 0
    for segment in found:
        size = segment.path.stat().st_size
        is_apart = bool(group) and any(group[0].first <= cut < segment.first for cut in cuts)
        is_whole = size >= DONE_BYTES or segment.path in damaged
        if is_apart or is_whole or total + size > MAX_BYTES:
            if len(group) > 1:
                yield group
            group, total = [], 0
        if not is_whole:
            group.append(segment)
            total += size
    if len(group) >= MIN_SEGMENTS:
        yield group


def _merge(group: Sequence[Segment], schema: pa.Schema, epoch: int, step: OnStep) -> None:
    if len(group) == 1:
        return
    first, last = group[0].first, max(segment.last for segment in group)
    name = f"{first:020d}-{last:020d}-{epoch:010d}.parquet"
    with draft_segment(group[0].path.parent, schema, first, epoch, lambda: name) as writer:
        for table in row_groups(_batches(segment.path for segment in group), schema):
            writer.write_table(table)
            step()
    for segment in group:
        if segment.path.name != name:
            segment.path.unlink()


def _batches(paths: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of segments in order.

    Segments may overlap. A row whose number has come before is left out.
    """
    held = 0
    for path in paths:
        for batch in batches(path):
            if (pc.min(batch["seq"]).as_py() or 0) <= held:
                batch = batch.filter(pc.greater(batch["seq"], held))
            held = max(held, pc.max(batch["seq"]).as_py() or 0)
            yield batch


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table's file, as many at a time as fit in memory."""
    yield from bounded_batches(path, AT_ONCE_ROWS.get(path.parent.name, AT_ONCE_LONG_ROWS))


def row_groups(parts: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield batches as tables of one row group each."""
    held: list[pa.RecordBatch] = []
    num_bytes = 0
    for batch in parts:
        held.append(batch)
        num_bytes += batch.nbytes
        if num_bytes >= AT_ONCE_BYTES:
            yield pa.Table.from_batches(held, schema)
            held, num_bytes = [], 0
    if held:
        yield pa.Table.from_batches(held, schema)
