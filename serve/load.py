"""Fill a store from a log: the state as the service would have had it."""

from __future__ import annotations

from pathlib import Path

from serve.errors import TabrankError
from serve.log import read_log
from serve.replay import Replay
from serve.snapshots import numbers
from serve.state import Schema
from serve.stores.opening import open_store
from serve.surface import Surface


def load(
    surface: Surface, log: Path, store_url: str, base: Path, until_ms: int | None = None
) -> dict[str, int]:
    """Replay `log` (all, or what lies before `until_ms`) and put its state into the store, whole or not at all.

    Whatever rows the store held are replaced; its journal stays until the service has it in the log. Answers how
    many viewers and candidates there are.
    """
    if store_url.startswith("memory:"):
        raise TabrankError(
            f"--store: {store_url!r} would end with this command; name lmdb:PATH or redis://HOST:PORT/DB"
        )
    schema = Schema(surface)
    records = read_log(log, surface)
    replay = Replay(schema, records)
    if until_ms is None:
        replay.finish()
    else:
        if until_ms <= min(int(replay.exposure_ms.min()), int(replay.event_ms.min())):
            raise TabrankError(
                f"--until: nothing of the log lies before {until_ms} ms; the store is left as it is"
            )
        if any(until_ms <= snapshot.ts_ms for snapshot in records.snapshots[:1]):
            raise TabrankError(
                f"--until: the log begins with a snapshot of {records.snapshots[0].ts_ms} ms, since older records were "
                "deleted; name a time after it"
            )
        replay.advance(until_ms)
    viewers, candidates = (
        {
            name: rows.table[row].tobytes()
            for name, row in rows.index.items()
            if replay.known[rows.entity][row]
        }
        for rows in (replay.state.viewers, replay.state.candidates)
    )
    store = open_store(store_url, surface.name, schema.fingerprint, base=base, writable=True)
    try:
        store.take_lease()  # a service that writes to this store is told so at its next commit
        # above every number in the log: rankings made from here on have seen all of it
        store.commit(max(store.seq(), records.last_seq, *numbers(log)) + 1, viewers, candidates, replace=True)
    finally:
        store.close()
    return {"viewers": len(viewers), "candidates": len(candidates)}
