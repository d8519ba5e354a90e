"""Takeover of a log by a new writer: fence the last writer, and lose none of its records."""

from __future__ import annotations

import logging
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.contract.errors import StoreMissing, StoreUnavailable, TabrankError, WriterFenced
from serve.features.rows import RowTable, Schema, State
from serve.ingest.apply import packed_changes, read_rows
from serve.log.erased_ids import ErasedIds
from serve.log.events import entries
from serve.log.lease import Lease, read_lease, swap_lease, types_of
from serve.log.replay import apply
from serve.log.retention import flush_journal
from serve.log.segments import MAX_SEQ, Segments, log_end
from serve.log.stream import LogStream
from serve.log.type_ledger import checked_types
from serve.storage.bucket import BucketPath
from serve.stores.factory import open_named
from serve.stores.protocol import LOAD, Store

log = logging.getLogger("tabrank")


class Claim:
    """Claim of a writer to the lease of the log in `folder`: its store and its surface."""

    def __init__(self, folder: Path, store: str, name: str, surface: str, base: Path) -> None:
        self.folder, self._store, self._base = folder, store, base
        self.lease = Lease.of(folder, store, name, surface, base)
        # The epoch of the last lease that this writer took; None before the first.
        self.epoch: int | None = None

    def names(self, held: Lease) -> bool:
        """Return True if a lease names this writer's store, or another store in its place."""
        return held.names(self.lease, self.folder)

    def refuse_changed_types(self) -> None:
        """Refuse a surface that changes the type of a field, before anything is written.

        Otherwise the lease that `take` takes has the types of this surface too.

        Raises:
            StoreUnavailable: a field has another type in the log.
        """
        self.lease = replace(self.lease, types=checked_types(self.folder, self.lease.surface))

    def take(self, own: Store, held: Lease | None) -> Lease:
        """Take the lease for the store `own`, whose epoch the caller holds, if it still is `held`.

        Raises:
            WriterFenced: another writer has changed the lease.
            StoreUnavailable: the journal of the store that the lease names cannot be written to the
                log, or the journal of `own` has numbers that belong to other records in the log.
        """
        new = replace(self.lease, origin=own.origin())
        ends = [own.seq()]
        if held is not None:
            is_own = self.names(held) and held.origin == new.origin
            if not (is_own and not held.released) and own.journal(0, 1):
                raise StoreUnavailable(
                    f"the newest records of the store {new.name} at {new.store} were given up, and their numbers "
                    f"in {self.folder} belong to others; delete that store, and fill it again with {LOAD}"
                )
            if not held.released:
                held, end = self._drain(held, own if is_own else None)
                ends.append(end)
            ends.append(held.end)
            new = replace(new, erasures=held.erasures)
        else:
            _flush(own, self.lease, self.folder)
        return self._swap(held, replace(new, end=max([log_end(self.folder), *ends])))

    def _drain(self, held: Lease, own: Store | None) -> tuple[Lease, int]:
        """Fence a lease's store and write its journal to the log; return the new lease and number.

        The lease gets a new epoch first. This tells the earlier writer that not just a `load` has
        fenced it, so it does not go on. The lease keeps its surface until the journal is written,
        because a new surface may have other fields of the request.
        """
        if own is not None:
            held = self._swap(held, held)
            _flush(own, held, self.folder)
            return held, own.seq()
        # Open it for reading first: a missing store that is opened for writing would be created.
        self.open(held).close()
        with closing(self.open(held, writable=True)) as store:
            held = self._swap(held, held)
            store.take_epoch()
            _flush(store, held, self.folder)
            return held, store.seq()

    def _swap(self, held: Lease | None, new: Lease) -> Lease:
        new = replace(new, epoch=held.epoch + 1 if held else 1)
        if not swap_lease(self.folder, held, new):
            raise WriterFenced(f"another writer is taking over {self.folder} at the same time; retry")
        self.epoch = new.epoch
        return new

    def open(self, held: Lease, *, writable: bool = False) -> Store:
        """Open the store that a lease names; if it is released, also one that took its place.

        Raises:
            StoreMissing: the store is not here, or the log is a copy without one.
            StoreUnavailable: the store cannot be read.
        """
        kind: type[StoreUnavailable] = StoreMissing
        why: object = f"the log was at {held.log}; move it back if it is not a copy"
        if address := held.address(self.folder):
            # The address in the lease has no credentials, so use this writer's own address if it is
            # the same.
            url = self._store if address == self.lease.store else address
            try:
                store = open_named(url, held.name, base=self._base, writable=writable)
                if store.origin() == held.origin or held.released:
                    return store
                store.close()
                why = f"the store {held.name} at {address} is another one"
            except StoreUnavailable as error:
                kind = type(error)
                why = f"there is no store {held.name} at {address}" if kind is StoreMissing else error
        raise kind(
            f"the newest records of {self.folder}, up to a minute of them, may be in a store that cannot be read: "
            f"{why} (its writer ran on the machine {held.machine or '?'}); run this where the store is, or bring it "
            "back; if it is lost for good, add --without-journal to `python -m serve load`, or to "
            "`python -m training forget`"
        )

    def written(self) -> int:
        """Return a record number up to which the log holds every record.

        Raises:
            StoreUnavailable: the store with the newest records cannot be read, or the bucket of the
                log does not list all records.
        """
        held, through = read_lease(self.folder), None
        if held is not None and not held.released:
            with closing(self.open(held)) as store:
                last, first = next(entries(store), (store.seq(), None))
                through = last - (len(first.records) if first else 0)
        # A log without segments may still have numbers in its flat tables.
        if end := log_end(self.folder):
            refuse_stale(self.folder, end, through or (held.end if held else 0))
        # If nobody writes to the log, it holds all of its records.
        return (end or MAX_SEQ) if through is None else through

    def erasures(self) -> int:
        """Return how many times viewers were erased from the log."""
        held = read_lease(self.folder)
        return held.erasures if held else 0

    def give_up(self) -> None:
        """Release a lease whose store is lost; the log goes on without the records in its journal.

        Raises:
            TabrankError: the store can be read.
        """
        held = read_lease(self.folder)
        if held is None or held.released:
            return
        with suppress(StoreUnavailable), closing(self.open(held)):
            raise TabrankError(
                f"--without-journal: the store {held.name} at {held.store} can be read, so that nothing has to be "
                "given up; leave the option out"
            )
        # Nobody needs the hashes any more. The rows may come back all the same.
        self._swap(held, replace(held, released=True, erased=held.erased and ""))


def _flush(store: Store, held: Lease, folder: Path) -> None:
    served = Segments(folder, types_of(held.surface), held.epoch)
    read = ErasedIds(held.erased).entries if held.erased else entries
    flush_journal(store, served, np.zeros(2, np.int64), lambda: True, read=read)


def refuse_stale(folder: Path, seq: int, end: int) -> None:
    """Raise StoreUnavailable if a bucket lists records only up to `seq` but has them up to `end`.

    With a list that is some moments old, these records would otherwise be left out for ever.
    """
    if isinstance(folder, BucketPath) and seq < end:
        raise StoreUnavailable(
            f"the bucket's list of {folder} ends with number {seq}, but the log has records up to {end}; retry, or "
            "restore the segments if they were deleted"
        )


def catch_up(folder: Path, store: Store, schema: Schema, now_ms: int, held_end: int) -> None:
    """Apply the records of the log that a store lacks because another store took them.

    `held_end` is the number of the log's last record according to its lease.

    Raises:
        StoreUnavailable: the bucket of the log does not list them all.
    """
    after, end = store.seq(), log_end(folder)
    refuse_stale(folder, max(after, end), held_end)
    if after >= end:
        return
    log.info("records from number %d to %d of %s are applied first", after + 1, end, folder)
    state = State(schema)
    state.candidates.apply(store.read([], 0)[1].rows)
    for part in LogStream(folder, schema.surface, after):
        before = {name: state.candidates.table[row].tobytes() for name, row in state.candidates.index.items()}
        columns = [part.viewers["id"], part.exposures["viewer"], part.events["viewer"]]
        names = pc.unique(pa.chunked_array([c for column in columns for c in column.chunks], pa.string()))
        names = names.drop_null().to_pylist()
        state.viewers = RowTable(schema, "viewer")
        counted = schema.values.keys() & schema.surface.candidate.keys()
        added = ({name: each} for name in counted for each in pc.unique(part.candidates[name]).to_pylist())
        names += read_rows(state, store, after, names, added)
        apply(part, state)
        state.viewers.see(now_ms)
        viewers, live = packed_changes(state, names, before.keys() | state.candidates.index)
        changed = {name: row for name, row in live.items() if before.get(name) != row}
        store.commit(part.last_seq, viewers, changed)
    if store.seq() < end:
        # The last records may change no state; note their number all the same.
        store.commit(end, {}, {})
