"""The store's journal, read: commits that are durable and not yet in the log, and the records' numbers."""

from __future__ import annotations

from collections.abc import Iterator

from serve.log.events import Entry, Record, unpack_entry
from serve.stores.protocol import Store

# Read so many entries at once. An entry has up to 4 MiB (`serve.ingest.waiting.COMMIT_BYTES`), so 32 MiB at most.
AT_ONCE = 8


def entries(store: Store, after: int = 0) -> Iterator[tuple[int, Entry]]:
    """The entries beyond a number, each under the number of its last record; some are in memory."""
    while packed := store.journal(after, AT_ONCE):
        for after, entry in packed:
            yield after, unpack_entry(entry)


def numbered(last: int, entry: Entry) -> Iterator[tuple[int, Record]]:
    """An entry's records with their numbers, which end with the entry's own."""
    yield from enumerate(entry.records, last - len(entry.records) + 1)
