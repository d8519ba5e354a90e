"""From the store's address in the settings to a store."""

from __future__ import annotations

from pathlib import Path

from serve.errors import StoreUnavailable, TabrankError
from serve.stores.lmdb import LOAD, LmdbStore
from serve.stores.memory import MemoryStore, Rows
from serve.stores.protocol import Store
from serve.strict import refuse_file

_named: dict[tuple[str, str, str], Rows] = {}


def open_store(url: str, surface: str, fingerprint: str, *, base: Path, writable: bool) -> Store:
    """The store of one surface and state fingerprint; a writer makes it where it is missing.

    `url` is `lmdb:PATH` (relative to `base`; one folder per surface and fingerprint in it), `memory:` (a new
    store each time) or `memory:NAME` (shared within this process). Raises `StoreUnavailable` to a reader
    where there is no store, and `TabrankError` for any other address.
    """
    kind, _, where = url.partition(":")
    if kind == "lmdb" and where:
        refuse_file(base / where)
        return LmdbStore(base / where / f"{surface}-{fingerprint[:12]}", writable=writable)
    if kind == "memory" and not where:
        return MemoryStore(writable=writable)
    if kind == "memory":
        key = (where, surface, fingerprint)
        if not writable and key not in _named:
            raise StoreUnavailable(f"there is no store at {url} in this process; fill it with {LOAD}")
        return MemoryStore(_named.setdefault(key, Rows()), writable=writable)
    raise TabrankError(f"store: {url!r} is not an address; use lmdb:PATH or memory:")
