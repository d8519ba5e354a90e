"""From the journal to the log: entries become segments, and leave the journal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, takewhile
from operator import itemgetter

from serve.features.slots import I64
from serve.log.events import Entry
from serve.log.journal import entries
from serve.log.segments import Segments
from serve.log.snapshots import numbers
from serve.log.throttle import OnStep
from serve.stores.protocol import Store

# Where the log cannot be written the journal grows: drop exposures beyond so many records or bytes in it, and refuse
# everything beyond twice as many bytes.
MAX_UNROLLED = 1_000_000
MAX_UNROLLED_BYTES = 1 << 30
SEGMENT_ENTRIES = 600  # a minute of commits
SEGMENT_BYTES = 256 << 20  # of these, as they are in the journal


def roll(store: Store, segments: Segments, logged: I64, step: OnStep) -> None:
    """Write the journal's entries as segments, and drop them from it; add their number and bytes to `logged`."""
    cuts, end = numbers(segments.folder), store.seq()
    waiting = takewhile(lambda entry: entry[0] <= end, entries(store))  # else it runs after what comes in
    for _, part in groupby(_placed(waiting, cuts), itemgetter(0)):
        last, num, num_bytes = segments.write((entry for _, entry in part), step)
        store.trim(last)
        logged += (num, num_bytes)


def _placed(
    entries: Iterable[tuple[int, Entry]], cuts: Sequence[int]
) -> Iterator[tuple[object, tuple[int, Entry]]]:
    """Yield each entry with a key of its segment; no segment goes across a snapshot."""
    num_bytes = 0
    for place, (last, entry) in enumerate(entries):
        num_bytes += entry.num_bytes
        side = sum(cut < last for cut in cuts)
        yield (side, place // SEGMENT_ENTRIES, num_bytes // SEGMENT_BYTES), (last, entry)
