"""Takeover of a log by a new writer, which fences the last one and leaves no record behind."""

from __future__ import annotations

import logging
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.contract.errors import StoreMissing, StoreUnavailable
from serve.features.rows import RowTable, Schema, State
from serve.features.surface import Surface
from serve.ingest.apply import packed
from serve.log.events import entries
from serve.log.lease import Lease, read_lease, swap_lease
from serve.log.replay import Replay
from serve.log.retention import flush_journal
from serve.log.segments import MAX_SEQ, Segments, log_end
from serve.log.stream import LogStream
from serve.stores.factory import open_named
from serve.stores.protocol import LOAD, Store

log = logging.getLogger("tabrank")
# Several writers that start at once take the lease one after the other.
ATTEMPTS = 10
# Most viewers' rows of a commit that catches up: those of a few thousand rankings.
CATCH_UP_ROWS = 2_000


class Claim:
    """Claim of a writer to the lease of the log in `folder`: its store and its surface."""

    def __init__(self, folder: Path, store: str, name: str, surface: Surface, base: Path) -> None:
        self.folder, self._store, self._base = folder, store, base
        self.lease = Lease.of(folder, store, name, surface.text, base)

    def take(self, own: Store) -> tuple[Lease, bool]:
        """Take the lease for the open store `own`, whose fencing epoch the caller holds.

        Returns the lease, and whether the journal of `own` continues the log. If not, its numbers
        belong to other records meanwhile.

        Raises:
            StoreUnavailable: the journal of the store that the lease names cannot be written to the
                log, or others take the lease again and again.
        """
        for _ in range(ATTEMPTS):
            held = read_lease(self.folder)
            ends, continues = [own.seq()], True
            if held is not None:
                ends.append(held.end)
                continues = held.names(self.lease, self.folder) and not held.released
                if not continues and not held.released:
                    ends.append(self._drain(held))
            end = max([log_end(self.folder), *ends])
            new = replace(self.lease, epoch=held.epoch + 1 if held else 1, end=end)
            if swap_lease(self.folder, held, new):
                return new, continues
        raise StoreUnavailable(f"other writers are taking over {self.folder} at the same time; retry later")

    def _drain(self, held: Lease) -> int:
        """Fence the store of a lease, and write its journal to the log; return its number."""
        store = self.open(held, writable=True)
        if store is None:
            log.warning("%s is a copy: what its service had not written to the log stays there", self.folder)
            return 0
        with closing(store):
            store.take_epoch()
            served = Segments(self.folder, held.types, held.epoch + 1)
            flush_journal(store, served, np.zeros(2, np.int64), lambda: True)
            return store.seq()

    def open(self, held: Lease, *, writable: bool = False) -> Store | None:
        """Open the store that a lease names; None if the log is a copy without a store.

        Raises:
            StoreUnavailable: the store is gone or cannot be read.
        """
        why: StoreUnavailable | None = None
        for address in held.addresses(self.folder):
            # The lease has no credentials.
            url = self._store if address == self.lease.store else address
            try:
                with suppress(StoreMissing):
                    # Opened for writing, a missing store would be created.
                    found = open_named(url, held.name, base=self._base, writable=False)
                    if not writable:
                        return found
                    found.close()
                    return open_named(url, held.name, base=self._base, writable=True)
                why = why or StoreUnavailable(f"there is no store {held.name} at {address}")
            except StoreUnavailable as error:
                why = error
        if why is None:
            return None
        raise StoreUnavailable(
            f"the newest records of {self.folder} may be in a store that cannot be read ({why}); bring it back, or "
            f"give these records up with {LOAD[:-1]} --without-journal`"
        )

    def written(self) -> int:
        """Return a number up to which the segments of the log hold every record.

        Raises:
            StoreUnavailable: the store with the log's newest records cannot be read.
        """
        held = read_lease(self.folder)
        store = None if held is None or held.released else self.open(held)
        if store is None:
            return MAX_SEQ
        with closing(store):
            return written_to(store)

    def give_up(self) -> None:
        """Release a lease whose store is lost: the log goes on without what is in its journal."""
        held = read_lease(self.folder)
        if held is not None and not swap_lease(self.folder, held, replace(held, released=True)):
            raise StoreUnavailable(f"another writer is taking over {self.folder}; try again")


def written_to(store: Store) -> int:
    """Return the number up to which the log holds every record of the store that writes to it."""
    last, first = next(entries(store), (store.seq(), None))
    return last - (len(first.records) if first else 0)


def catch_up(folder: Path, store: Store, surface: Surface, schema: Schema, now_ms: int) -> None:
    """Apply the records of the log that a store lacks, because another store took them."""
    after, end = store.seq(), log_end(folder)
    if after >= end:
        return
    log.info("records from number %d to %d of %s are applied first", after + 1, end, folder)
    state = State(schema)
    state.candidates.apply(store.read([], 0)[1].rows)
    for part in LogStream(folder, surface, after):
        before = {name: state.candidates.table[row].tobytes() for name, row in state.candidates.index.items()}
        columns = [part.viewers["id"], part.exposures["viewer"], part.events["viewer"]]
        names = pc.unique(pa.chunked_array([c for column in columns for c in column.chunks], pa.string()))
        names = names.drop_null().to_pylist()
        state.viewers = RowTable(schema, "viewer")
        rows = store.read(names, after)[0]
        state.viewers.apply({name: row for name, row in zip(names, rows, strict=True) if row is not None})
        replay = Replay(schema, part, state)
        replay.finish()
        replay.as_served()
        state.viewers.see(now_ms)
        after_rows = packed(state.candidates, before.keys() | state.candidates.index)
        changed = {name: row for name, row in after_rows.items() if before.get(name) != row}
        store.commit(part.last_seq, packed(state.viewers, names), changed)
    if store.seq() < end:
        # The last records change no state.
        store.commit(end, {}, {})
