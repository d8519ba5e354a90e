"""Flushing of the journal: entries are written to the log as segments, then trimmed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, takewhile
from operator import itemgetter

from serve.features.slots import I64
from serve.log.events import JournalEntry, entries
from serve.log.segments import Segments
from serve.log.snapshots import numbers
from serve.log.throttle import OnStep
from serve.stores.protocol import Store

# The journal grows while the log cannot be written. Drop exposures beyond this many records or
# bytes, and refuse all records beyond twice as many bytes.
MAX_UNFLUSHED = 1_000_000
MAX_UNFLUSHED_BYTES = 1 << 30
# Most entries of one segment: a minute of commits.
SEGMENT_ENTRIES = 600
# Most bytes of a segment's entries, packed as in the journal.
SEGMENT_BYTES = 256 << 20


def flush_journal(store: Store, segments: Segments, logged: I64, step: OnStep) -> None:
    """Write the journal's entries as segments, trim them, and add number and bytes to `logged`."""
    cuts, end = numbers(segments.folder), store.seq()
    # Stop at the last entry that exists now: new entries would otherwise keep the loop running.
    waiting = takewhile(lambda entry: entry[0] <= end, entries(store))
    for _, part in groupby(_placed(waiting, cuts), itemgetter(0)):
        last, num, num_bytes = segments.write((entry for _, entry in part), step)
        store.trim(last)
        logged += (num, num_bytes)


def _placed(
    entries: Iterable[tuple[int, JournalEntry]], cuts: Sequence[int]
) -> Iterator[tuple[object, tuple[int, JournalEntry]]]:
    """Yield each entry with the key of its segment; a segment never spans a snapshot."""
    num_bytes = 0
    for place, (last, entry) in enumerate(entries):
        num_bytes += entry.num_bytes
        side = sum(cut < last for cut in cuts)
        yield (side, place // SEGMENT_ENTRIES, num_bytes // SEGMENT_BYTES), (last, entry)
