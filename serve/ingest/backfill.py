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
from serve.features.rows import RowTable, Schema, State
from serve.features.surface import Surface
from serve.ingest.apply import RecordApplier, packed
from serve.log.events import entries, numbered
from serve.log.rebuild import rebuild
from serve.log.snapshots import AT_ONCE, numbers
from serve.stores.factory import check_address, open_store, shown
from serve.stores.protocol import Store


def load(
    surface: Surface,
    log: Path,
    store_url: str,
    base: Path,
    until_ms: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    named: str | None = None,
) -> dict[str, Any]:
    """Rebuild the state of `log`, or of what is before `until_ms`; replace the store's rows.

    The rows are replaced atomically. Journal entries that are not in the log yet are applied too,
    and stay in the journal until the service has logged them. Returns the numbers of viewers and
    candidates, `complete_since_ms` of each feature (None: from the beginning), and the `diagnoses`,
    whose remedies name the surface as `named`. `report` is called with these, with what the log
    joins, and with the progress.
    """
    check_address(store_url, base)
    schema = Schema(surface)
    args = AppArgs(named or surface.name, store_url, log=str(log))
    service = Service(args, base, Features(schema), UserConfig())
    built = rebuild(schema, log, until_ms, report)
    state = built.state
    store = open_store(store_url, surface.name, schema.fingerprint, base=base, writable=True)
    try:
        # This fences a service that writes to the store: its next commit fails.
        store.take_epoch()
        if until_ms is None:
            _apply_journal(store, state, built.seq)
        # An old log must not lose its viewers before `keep_viewers_days` have passed.
        now_ms = int(time.time() * 1e3)
        state.viewers.see(now_ms)
        viewers, candidates = (_packed(rows) for rows in (state.viewers, state.candidates))
        # A flat log may hold numbers, but only segments and snapshots count as its end.
        log_seq, _ = service.log_end() or (0, 0)
        note = {
            "log": service.log_paths(),
            "log_seq": log_seq,
            "filled_ms": now_ms,
            "ends_ms": built.ends_ms,
            "coverage": built.coverage,
        }
        # Commit above every number of the log: later rankings have seen all of it.
        seq = max([store.seq(), built.seq, log_seq, *numbers(log)]) + 1
        # The store takes the memory of all rows once more.
        since_ms = built.since_ms
        del built, state
        store.replace(seq, viewers, candidates, json.dumps(note).encode())
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
        "complete_since_ms": since_ms,
        "diagnoses": list(map(asdict, found)),
    }


def _packed(rows: RowTable) -> dict[str, bytes]:
    """Return all packed rows by id, made some at a time to hold them in memory once only."""
    names, all_packed = list(rows.index), {}
    for begin in range(0, len(names), AT_ONCE):
        all_packed.update(packed(rows, names[begin : begin + AT_ONCE]))
    return all_packed


def _apply_journal(store: Store, state: State, after: int) -> None:
    """Apply the records that a service acknowledged but has not written to the log yet."""
    changes = RecordApplier(state)
    for last, entry in entries(store, after):
        for seq, record in numbered(last, entry):
            if seq > after:
                changes.apply(record, entry.received_ms)
    changes.observe()
