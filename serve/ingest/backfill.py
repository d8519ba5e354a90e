"""`serve load`: replay a log and fill a store with the resulting state."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serve.config.diagnoses import Service
from serve.config.settings import AppArgs, UserConfig
from serve.contract.errors import TabrankError, WriterFenced
from serve.features.matrix import Features
from serve.features.rows import Schema, State
from serve.features.surface import Surface
from serve.ingest.apply import RecordApplier, packed
from serve.ingest.takeover import Claim, written_to
from serve.log.events import entries, numbered
from serve.log.lease import read_lease
from serve.log.rebuild import rebuild
from serve.log.replay import Replay
from serve.log.segments import log_end
from serve.log.stream import LogStream
from serve.stores.factory import check_address, name_of, open_store, shown
from serve.stores.protocol import Store


def load(
    surface: Surface,
    log: Path,
    store_url: str,
    base: Path,
    until_ms: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    named: str | None = None,
    *,
    without_journal: bool = False,
) -> dict[str, Any]:
    """Rebuild the state of `log`, or of what is before `until_ms`; replace the store's rows.

    The rows are replaced atomically. A service may go on meanwhile. What it has not written to the
    log yet is applied too, and stays in its journal. What comes later is applied when it starts
    with this store. If the store with that journal is lost, `without_journal` gives it up.

    Returns the numbers of viewers and
    candidates, `complete_since_ms` of each feature (None: from the beginning), and the `diagnoses`,
    whose remedies name the surface as `named`. `report` is called with these, with what the log
    joins, and with the progress.
    """
    check_address(store_url, base)
    schema = Schema(surface)
    claim = Claim(log, store_url, name_of(surface.name, schema.fingerprint), surface, base)
    if without_journal:
        claim.give_up()
    args = AppArgs(named or surface.name, store_url, log=str(log))
    service = Service(args, base, Features(schema), UserConfig())
    built = rebuild(schema, log, until_ms, report, claim.written())
    state, seq = built.state, built.seq
    store = open_store(store_url, surface.name, schema.fingerprint, base=base, writable=True)
    try:
        # This fences a service that writes to the store: its next commit fails.
        store.take_epoch()
        if until_ms is None:
            seq = _follow(claim, store, surface, state, seq)
        # An old log must not lose its viewers before `keep_viewers_days` have passed.
        now_ms = int(time.time() * 1e3)
        state.viewers.see(now_ms)
        viewers, candidates = (packed(rows, rows.index) for rows in (state.viewers, state.candidates))
        # A flat log may hold numbers, but only segments and snapshots count as its end.
        log_seq = end.seq if (end := service.log_end()) else 0
        note = {
            "log": service.log_paths(),
            "log_seq": log_seq,
            "filled_ms": now_ms,
            "ends_ms": built.ends_ms,
            "coverage": built.coverage,
        }
        if until_ms is not None:
            # What is later is left out for good: the service must not catch up with it.
            seq = max(seq, log_seq)
        # A store without a number counts as empty.
        store.replace(max(seq, store.seq(), 1), viewers, candidates, json.dumps(note).encode())
    except WriterFenced:
        raise TabrankError(
            f"--store {shown(store_url)}: a running service writes to it; stop it first "
            "(`python -m serve down`), then load"
        ) from None
    finally:
        store.close()
    found = list(service.of_stored())
    for diagnosis in found:
        report(f"warning: {diagnosis}")
    return {
        "viewers": len(viewers),
        "candidates": len(candidates),
        "complete_since_ms": built.since_ms,
        "diagnoses": list(map(asdict, found)),
    }


def _follow(claim: Claim, own: Store, surface: Surface, state: State, after: int) -> int:
    """Apply what the log's writer took after a record number; return the last number.

    Its newest records are in the journal of its store; while it runs, they move on to the log.
    """
    while True:
        lease = read_lease(claim.folder)
        if lease is None:
            # Its numbers may be those of another log, from which they go on.
            return _apply_journal(own, state, after, may_skip=True)[0]
        if lease.released:
            return _apply_segments(claim.folder, surface, state, after, log_end(claim.folder))
        source = own if lease.names(claim.lease, claim.folder) else claim.open(lease)
        if source is None:
            # A copied log has no writer yet.
            return after
        through = written_to(source)
        try:
            after = _apply_segments(claim.folder, surface, state, after, through)
            after, is_whole = _apply_journal(source, state, after)
        finally:
            if source is not own:
                source.close()
        if is_whole:
            return after


def _apply_segments(folder: Path, surface: Surface, state: State, after: int, through: int) -> int:
    """Apply the records of a log with numbers above `after` up to `through`, if there are any."""
    if after < through and log_end(folder) > after:
        for part in LogStream(folder, surface, after, through):
            replay = Replay(state.schema, part, state)
            replay.finish()
            replay.as_served()
    return max(after, through)


def _apply_journal(store: Store, state: State, after: int, *, may_skip: bool = False) -> tuple[int, bool]:
    """Apply a journal's records above `after`; return the last number, and whether none was gone.

    Entries that were written to the log meanwhile are gone. The rest is then left out, unless
    numbers `may_skip`.
    """
    changes, is_whole = RecordApplier(state), True
    for last, entry in entries(store, after):
        is_whole = may_skip or last - len(entry.records) <= after
        if not is_whole:
            break
        for seq, record in numbered(last, entry):
            if seq > after:
                changes.apply(record, entry.received_ms)
        after = last
    changes.observe()
    return after, is_whole
