"""Open the store that an address names."""

from __future__ import annotations

from pathlib import Path

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_file
from serve.stores.lmdb import LmdbStore
from serve.stores.protocol import Store, shown


def open_store(url: str, surface: str, fingerprint: str, *, base: Path, writable: bool) -> Store:
    """Open the store of one surface and state fingerprint; a writer creates a missing store.

    `url` is `lmdb:PATH` (relative to `base`, with one folder per surface and fingerprint) or
    `redis://USER:PASSWORD@HOST:PORT/DB` (`rediss:` for TLS).

    Raises:
        StoreUnavailable: a reader asks for a store that does not exist.
        TabrankError: the address has another form.
    """
    return open_named(url, name_of(surface, fingerprint), base=base, writable=writable)


def open_named(url: str, name: str, *, base: Path, writable: bool) -> Store:
    """Open the store with this name at an address, as `open_store` does."""
    check_address(url, base)
    kind, _, where = url.partition(":")
    if kind == "lmdb":
        return LmdbStore(base / where / name, writable=writable)
    try:
        from serve.stores.redis import RedisStore
    except ModuleNotFoundError as error:
        raise TabrankError(
            f"store: {shown(url)!r} needs the package {error.name}; "
            "run `python -m pip install 'tabrank[redis]'`"
        ) from None
    return RedisStore(url, name, writable=writable)


def name_of(surface: str, fingerprint: str) -> str:
    """Return the name under which an address keeps the store of a surface and its state."""
    return f"{surface}-{fingerprint[:12]}"


def check_address(url: str, base: Path) -> None:
    """Raise TabrankError unless `url` has the form of an address; call it before long work."""
    kind, _, where = url.partition(":")
    if kind == "lmdb" and where:
        refuse_file(base / where)
    elif kind not in ("redis", "rediss") or not where.startswith("//"):
        raise TabrankError(f"store: {shown(url)!r} is not an address; use lmdb:PATH or redis://HOST:PORT/DB")
