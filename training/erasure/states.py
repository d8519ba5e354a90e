"""Erase viewers from the state that a service and its log keep, in the store and in snapshots."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from serve.config.settings import AppArgs
from serve.contract.errors import StoreMissing, StoreUnavailable, TabrankError
from serve.contract.records import Forget
from serve.features.rows import Schema, State
from serve.features.slots import Entity
from serve.features.surface import read_surface
from serve.ingest.apply import packed
from serve.ingest.takeover import Claim
from serve.ingest.writer import Ingester
from serve.log.erased_ids import ErasedIds
from serve.log.events import EXPOSURE_IDS, VIEWERS, pack
from serve.log.lease import FILE, Lease, read_lease, swap_lease
from serve.log.reader import TABLES
from serve.log.segments import segments
from serve.log.snapshots import Snapshot
from serve.stores.factory import name_of

# Rows or records per call. It is half the number of records that may wait for the writer.
AT_ONCE = 10_000


def find_store(log: Path, viewers: Sequence[str], *, is_lost: bool) -> tuple[Lease | None, str, set[str]]:
    """Return a log's lease, the address of the store behind it, and which viewers the store knows.

    A log that no service wrote has neither lease nor store. There is no address if the store is not
    here: nobody needs it because the lease is released, or it is lost for good (`is_lost`).

    Raises:
        TabrankError: an earlier version of tabrank wrote the log, so its store is unknown. Or the
            store cannot be read, so that it and its journal would keep the viewers.
    """
    lease = read_lease(log)
    if lease is None:
        if any(segments(log, name) for name in TABLES):
            raise TabrankError(f"{log}: has no {FILE}, so its store is unknown; start its service once")
        return None, "", set()
    known: set[str] = set()
    try:
        store = Claim(log, lease.store, lease.name, lease.surface, Path()).open(lease)
    except StoreUnavailable as error:
        if is_lost or (lease.released and isinstance(error, StoreMissing)):
            return lease, "", known
        raise
    with closing(store):
        for part in _parts(viewers):
            rows, _ = store.read(part, store.seq())
            known.update(name for name, row in zip(part, rows, strict=True) if row is not None)
    return lease, lease.address(log) or "", known


def forget_without_store(log: Path, lease: Lease, viewers: Iterable[str], requests: Iterable[str]) -> None:
    """Note in the lease that its store, which is away, still knows viewers and their requests.

    If it comes back after all, its journal is written to the log without their records, and a
    service refuses its rows. The new epoch keeps a writer that still has it from writing more.

    Raises:
        TabrankError: there are too many viewers and requests to note, or the log cannot be written.
    """
    erased = ErasedIds(lease.erased or "")
    erased.add(VIEWERS, viewers)
    erased.add(EXPOSURE_IDS, requests)
    _count(log, lease, epoch=lease.epoch + 1, erased="" if lease.released else erased.text())


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
    args = AppArgs(surface.name, address, lease.models, str(log), surface_text=lease.surface)
    args = replace(args, keep_log_days=0, keep_viewers_days=0)
    epoch = asyncio.run(_commit(log, args, viewers))
    now = read_lease(log)
    if now and now.epoch == epoch and not now.released:
        raise TabrankError(
            f"{log}: the store's journal could not be written to the log; see the warning above, then run the "
            "command again"
        )


def _parts(viewers: Sequence[str]) -> Iterator[Sequence[str]]:
    return (viewers[begin : begin + AT_ONCE] for begin in range(0, len(viewers), AT_ONCE))


def _count(log: Path, held: Lease | None, **changes: Any) -> None:
    """Count one more erasure in the lease, and change it."""
    if held is None or not swap_lease(log, held, replace(held, erasures=held.erasures + 1, **changes)):
        raise TabrankError(f"{log}: its service has just started; try again")


async def _commit(log: Path, args: AppArgs, viewers: Sequence[str]) -> int | None:
    """Commit records that forget the viewers, and return the epoch of the lease that allowed it."""
    ingester = Ingester(args, Path.cwd())
    await ingester.take_over()
    try:
        # The first call has no records, and only says why the store is refused. The last record
        # forgets nobody: its row stays, so that the log does not seem to lack the last numbers.
        for part in ([], *_parts([*viewers, secrets.token_hex(16)])):
            records = [Forget(viewer) for viewer in part]
            taking = asyncio.ensure_future(ingester.take(records, len(pack(records))))
            await asyncio.sleep(0)
            await ingester.commit_waiting()
            await taking
            if not part:
                # Count before the store forgets anybody: a store that is being filled now, or that
                # was filled earlier from this log, still knows the viewers.
                _count(log, read_lease(log))
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
