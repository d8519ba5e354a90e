"""`serve load`: replay a log and fill a store with the resulting state."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from serve.config.diagnoses import DeclaredService, LoadNote
from serve.config.settings import AppArgs, UserConfig
from serve.contract.errors import StoreUnavailable, TabrankError, WriterFenced
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import Surface
from serve.ingest.apply import packed, packed_values
from serve.ingest.takeover import Claim
from serve.log.rebuild import rebuild
from serve.log.segments import MAX_SEQ
from serve.stores.factory import check_address, name_of, open_store
from serve.stores.protocol import shown


def load(
    surface: Surface,
    log: Path,
    store_url: str,
    base: Path,
    report: Callable[[str], None] = lambda line: None,
    named: str | None = None,
    *,
    without_journal: bool = False,
) -> dict[str, Any]:
    """Rebuild the state from `log`, and replace the store's rows by it, atomically.

    A service with another store may run meanwhile. The records that it has not written to the log
    yet stay in its journal. They, and all that come later, are applied when a writer next opens
    this store. If the store with the journal is lost, `without_journal` gives these records up.

    `report` is called with lines about the progress, about what the log joins, and about each
    diagnosis.

    Returns:
        The numbers of viewers and candidates, `complete_since_ms` of each feature (None: from the
        beginning on), and the `diagnoses`, whose remedies name the surface as `named`.

    Raises:
        TabrankError: a running service, or another `load`, writes to the store, or the surface
            changes the type of a field of the log.
    """
    check_address(store_url, base)
    schema = Schema(surface)
    claim = Claim(log, store_url, name_of(surface.name, schema.fingerprint), surface.text, base)
    # Before the store's writer: nobody should stop a service for a surface that is refused anyway.
    claim.refuse_changed_types()
    args = AppArgs(named or surface.name, store_url, log=str(log))
    service = DeclaredService(args, base, Features(schema), UserConfig())
    busy = (
        f"--store {shown(store_url)}: a running service or another load writes to it; stop that first "
        "(`python -m serve down`), or fill another store and deploy that with `python -m serve up`"
    )
    with suppress(StoreUnavailable), closing(service.open()) as present:
        present.refuse_writer(busy)
    if without_journal:
        claim.give_up()
    erasures, through = claim.erasures(), claim.written()
    built = rebuild(schema, log, report, through)
    # The last records may change no state, and count as replayed all the same.
    state, seq = built.state, max(built.seq, through if through < MAX_SEQ else 0)
    store = open_store(store_url, surface.name, schema.fingerprint, base=base, writable=True)
    try:
        # This fences a service that began to write to the store meanwhile: its next commit fails.
        store.take_epoch()
        # Viewers of an old log count as seen now, so that none is forgotten before
        # `keep_viewers_days`.
        now_ms = int(time.time() * 1e3)
        state.viewers.see(now_ms)
        viewers, candidates = (packed(rows, rows.index) for rows in (state.viewers, state.candidates))
        num_viewers, num_candidates = len(viewers), len(candidates)
        every = {field: values.index.values() for field, values in state.candidates.values.items()}
        for stored, values in zip((candidates, viewers), packed_values(state.candidates, every), strict=True):
            stored |= values
        # A flat log may hold record numbers, but only segments and snapshots say where a log ends.
        log_seq = end.seq if (end := service.log_end()) else 0
        note = LoadNote(service.log_paths(), log_seq, now_ms, built.ends_ms, dict(built.coverage), erasures)
        if claim.erasures() != erasures:
            raise TabrankError(f"{log}: viewers were erased from it meanwhile; run the command again")
        # Keep nothing else: the store takes the memory of all rows once more.
        since_ms = built.since_ms
        del built, state
        # A store without a number counts as empty.
        store.replace(max(seq, 1), viewers, candidates, msgspec.json.encode(note))
    except WriterFenced:
        raise TabrankError(busy) from None
    finally:
        store.close()
    found = list(service.store_faults())
    for diagnosis in found:
        report(f"warning: {diagnosis}")
    return {
        "viewers": num_viewers,
        "candidates": num_candidates,
        "complete_since_ms": since_ms,
        "diagnoses": list(map(asdict, found)),
    }
