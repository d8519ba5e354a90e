"""Retention: write the journal to the served log, and merge, snapshot and delete its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path

from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.slots import I64
from serve.log.compaction import compact
from serve.log.events import Entries, JournalEntry, entries
from serve.log.reader import TABLES
from serve.log.segments import MAX_SEQ, Segments, segments
from serve.log.snapshots import Snapshot, numbers, set_truncation_point, snapshots, truncation_point, write
from serve.log.throttle import OnStep
from serve.storage.atomic_files import exclusive
from serve.storage.parquet import bounded_batches, readable
from serve.stores.protocol import Store

# How many snapshots the retention time has. With four, the log keeps at most a quarter more than
# configured.
SNAPSHOTS = 4
# A snapshot is due after this time or this many records, whichever comes first. A rebuild of the
# same state then replays no more than that.
EVERY_MS = 3_600_000
EVERY_RECORDS = 1_000_000
# Limits the entries of one segment to a minute of commits.
SEGMENT_ENTRIES = 600
# Limits the bytes of a segment's entries, packed as in the journal.
SEGMENT_BYTES = 256 << 20


def flush_journal(
    store: Store, served: Segments, logged: I64, step: OnStep, end: int = MAX_SEQ, read: Entries = entries
) -> None:
    """Write the journal's entries as segments, trim them, and add records and bytes to `logged`.

    It stops at the record number `end`. Otherwise, new entries could keep the loop running. `read`
    reads the entries.
    """
    cuts = numbers(served.folder)
    waiting = takewhile(lambda entry: entry[0] <= end, read(store))
    for _, part in groupby(_placed(waiting, cuts), itemgetter(0)):
        last, num, num_bytes = served.write((entry for _, entry in part), step)
        store.trim(last)
        logged += (num, num_bytes)


def _placed(
    entries: Iterable[tuple[int, JournalEntry]], cuts: Sequence[int]
) -> Iterator[tuple[object, tuple[int, JournalEntry]]]:
    """Yield each entry with a key that is equal for entries of the same segment.

    No segment spans a snapshot or a gap. The journal of a store that came back from a backup has a
    gap, because the log has the records in between already.
    """
    num_bytes = num_gaps = before = 0
    for place, (last, entry) in enumerate(entries):
        num_bytes += entry.num_bytes
        num_gaps += last - len(entry.records) != before
        before = last
        side = sum(cut < last for cut in cuts)
        yield (num_gaps, side, place // SEGMENT_ENTRIES, num_bytes // SEGMENT_BYTES), (last, entry)


def rewriting(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock under which files of a log are merged, rewritten or deleted.

    New segments are written without it.

    Raises:
        TabrankError: another process holds it.
    """
    busy = f"another process, such as `training forget`, rewrites {folder}; its segments are merged later"
    return exclusive(folder / ".lock", busy)


def enforce_retention(
    served: Segments,
    schema: Schema,
    keep_ms: int,
    store: Store,
    clock: Callable[[], int],
    step: OnStep = lambda: True,
) -> None:
    """Merge a log's segments, write a snapshot if one is due, and delete records after `keep_ms`.

    Only the writer with the current fencing epoch may call it. If `keep_ms` is 0, all records are
    kept. Two kinds of snapshots are kept: the newest two of the running state, for a rebuild, and
    those from which the log of the last `keep_ms` can be replayed. `clock` is the service's clock
    in ms. `step` is called after each part of the work and may end it.

    Raises:
        OSError, pa.ArrowException, StoreUnavailable, TabrankError: the work failed; the log can
            still be replayed.
    """
    folder = served.folder
    taken = snapshots(folder)
    # Cut only at snapshots that are needed for the retention. With a cut at every snapshot,
    # segments would stay small.
    compact(served, [snapshot.seq for snapshot in _needed(folder, taken, keep_ms)], step)
    if _is_due(folder, taken, schema.fingerprint, clock(), store.seq()):
        write(folder, store, schema, clock, step)
        taken = snapshots(folder)
    newest = [snapshot for snapshot in taken if snapshot.fingerprint == schema.fingerprint][-2:]
    kept = [one for one in taken if one in (*newest, *_needed(folder, taken, keep_ms))]
    for snapshot in taken:
        if snapshot not in kept:
            snapshot.remove()
    if keep_ms and (old := [snapshot for snapshot in kept if clock() - snapshot.ts_ms >= keep_ms]):
        _delete(folder, old)


def _needed(folder: Path, taken: Sequence[Snapshot], keep_ms: int) -> list[Snapshot]:
    """Return the snapshots that replace deleted records, now or later.

    They are the first one of each state, and some within the retention time.
    """
    needed: list[Snapshot] = []
    for snapshot in taken if keep_ms or truncation_point(folder) else ():
        is_new = snapshot.fingerprint not in {one.fingerprint for one in needed}
        if is_new or (keep_ms and snapshot.ts_ms - needed[-1].ts_ms >= keep_ms / SNAPSHOTS):
            needed.append(snapshot)
    return needed


def _is_due(folder: Path, taken: Sequence[Snapshot], fingerprint: str, now_ms: int, seq: int) -> bool:
    """Return True if the state needs a snapshot at the record number `seq`."""
    newest = next((one for one in reversed(taken) if one.fingerprint == fingerprint), None)
    if taken and not newest:
        # The state is new. The sooner it has a snapshot, the more of the log can be replayed.
        return True
    since_ms, since = (newest.ts_ms, newest.seq) if newest else (_first_ms(folder), 0)
    if since_ms is None or seq <= since:
        return False
    return now_ms - since_ms >= EVERY_MS or seq - since >= EVERY_RECORDS


def _first_ms(folder: Path) -> int | None:
    """Return the time of the log's first record, or None."""
    times = []
    for name in TABLES:
        for segment in segments(folder, name):
            # If a segment is damaged, the next one tells the time well enough.
            with suppress(TabrankError, FileNotFoundError, StopIteration), readable(segment.path):
                times.append(next(bounded_batches(segment.path, 1, columns=["ts_ms"]))["ts_ms"][0].as_py())
                break
    return min(times, default=None)


def _delete(folder: Path, old: list[Snapshot]) -> None:
    """Delete the records that the newest expired snapshot contains."""
    *before, horizon = old
    if truncation_point(folder) < horizon.seq:
        horizon.verify()
        # From now on a replay starts with this snapshot, whichever older records remain.
        set_truncation_point(folder, horizon.seq)
    for path in replaced(folder, horizon.seq):
        path.unlink()
    for snapshot in before:
        snapshot.remove()


def replaced(folder: Path, seq: int) -> Iterator[Path]:
    """Yield the segments whose records a snapshot at the number `seq` contains."""
    for name in TABLES:
        # Keep the last segment, because each table of a log needs rows.
        for segment in segments(folder, name)[:-1]:
            if segment.last <= seq:
                yield segment.path
