"""Erase viewers from the state that a service and its log keep, in the store and in snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from serve.config.settings import AppArgs
from serve.contract.errors import StoreMissing, TabrankError
from serve.contract.records import Forget
from serve.features.rows import Schema, State
from serve.features.slots import Entity
from serve.features.surface import read_surface
from serve.ingest.apply import packed
from serve.ingest.writer import Ingester
from serve.log.events import pack
from serve.log.lease import FILE, Lease, read_lease, swap_lease
from serve.log.reader import TABLES
from serve.log.segments import segments
from serve.log.snapshots import Snapshot
from serve.stores.factory import name_of, open_named

# Rows or records per call. It is half the number of records that may wait for the writer.
AT_ONCE = 10_000


def find_store(log: Path, viewers: Sequence[str]) -> tuple[Lease | None, str | None, set[str]]:
    """Return a log's lease, the address of the store behind it, and which viewers the store knows.

    A log that no service wrote has neither lease nor store. The store of a log that was copied or
    moved may be gone.

    Raises:
        TabrankError: an earlier version of tabrank wrote the log, so its store is unknown.
    """
    lease = read_lease(log)
    if lease is None:
        if any(segments(log, name) for name in TABLES):
            raise TabrankError(f"{log}: has no {FILE}, so its store is unknown; start its service once")
        return None, None, set()
    known: set[str] = set()
    if address := lease.address(log):
        try:
            store = open_named(address, lease.name, base=Path(), writable=False)
        except StoreMissing:
            return lease, None, known
        with closing(store):
            for part in _parts(viewers):
                rows, _ = store.read(part, store.seq())
                known.update(name for name, row in zip(part, rows, strict=True) if row is not None)
    return lease, address, known


def forget_in_store(log: Path, lease: Lease, address: str, viewers: Sequence[str]) -> None:
    """Take over as the log's writer for a moment, and forget viewers in its store.

    No record of them stays in the store's journal. A running service waits meanwhile, and then
    continues by itself.

    Raises:
        TabrankError: another release wrote the store, or the store or the log cannot be written.
    """
    surface = read_surface(lease.surface, str(log / FILE))
    if lease.name != name_of(surface.name, Schema(surface).fingerprint):
        raise TabrankError(f"{log}: its store {lease.name} is of another release of tabrank; use that one")
    # Count the erasure in the lease before anything else: a store that is being filled now, or that
    # was filled earlier from this log, still knows the viewers.
    if not swap_lease(log, lease, replace(lease, erasures=lease.erasures + 1)):
        raise TabrankError(f"{log}: its service has just started; try again")
    with TemporaryDirectory() as folder:
        path = Path(folder, "surface.toml")
        path.write_text(lease.surface)
        args = AppArgs(str(path), address, log=str(log.resolve()), keep_log_days=0, keep_viewers_days=0)
        epoch = asyncio.run(_commit(args, viewers))
    now = read_lease(log)
    if now and now.epoch == epoch and not now.released:
        raise TabrankError(
            f"{log}: the store's journal could not be written to the log; see the warning above, then run the "
            "command again"
        )


def _parts(viewers: Sequence[str]) -> Iterator[Sequence[str]]:
    return (viewers[begin : begin + AT_ONCE] for begin in range(0, len(viewers), AT_ONCE))


async def _commit(args: AppArgs, viewers: Sequence[str]) -> int | None:
    """Commit records that forget the viewers, and return the epoch of the lease that allowed it."""
    ingester = Ingester(args, Path.cwd())
    await ingester.take_over()
    try:
        for part in _parts(viewers):
            records = [Forget(viewer) for viewer in part]
            taking = asyncio.ensure_future(ingester.take(records, len(pack(records))))
            await asyncio.sleep(0)
            await ingester.commit_waiting()
            await taking
    finally:
        await ingester.finish()
    return ingester.epoch


def forgotten(
    snapshot: Snapshot, schema: Schema, viewers: Container[str]
) -> Iterator[tuple[Entity, str, bytes]]:
    """Yield (entity, id, row) of a snapshot without these viewers; candidates stay in memory."""
    state = State(schema)
    for entity, rows in snapshot.rows("candidate"):
        state.rows(entity).apply(rows)
    for entity, rows in snapshot.rows("viewer"):
        for name, row in rows.items():
            if entity == "viewer" and name in viewers:
                state.viewers.apply({name: row})
                state.forget(name)
                state.viewers.drop(name)
            else:
                yield "viewer", name, row
    for table in (state.candidates, *state.candidates.values.values()):
        for name, left in packed(table, table.index).items():
            yield "candidate", name, left
