"""Reading of the store's journal: commits that are durable but not yet in the log."""

from __future__ import annotations

from collections.abc import Iterator

from serve.log.events import JournalEntry, Record, unpack_entry
from serve.stores.protocol import Store

# Entries read at once: an entry has up to 4 MiB (`serve.ingest.waiting.COMMIT_BYTES`), so a read
# takes at most 32 MiB.
AT_ONCE = 8


def entries(store: Store, after: int = 0) -> Iterator[tuple[int, JournalEntry]]:
    """Yield (number of the last record, entry) for entries above `after`; hold few in memory."""
    while packed := store.journal(after, AT_ONCE):
        for after, entry in packed:
            yield after, unpack_entry(entry)


def numbered(last: int, entry: JournalEntry) -> Iterator[tuple[int, Record]]:
    """Yield an entry's records with their numbers, up to `last`, the entry's own."""
    yield from enumerate(entry.records, last - len(entry.records) + 1)
