"""Read only viewers or only changes from a store, whose own read returns both, and write to it."""

from __future__ import annotations

from collections.abc import Sequence

from serve.stores.protocol import Changes, Packed, Store


def read_viewers(store: Store, ids: Sequence[str]) -> list[bytes | None]:
    """Return the rows of `ids`."""
    return store.read(ids, 0)[0]


def read_changes(store: Store, since: int) -> Changes:
    """Return the candidates that changed after `since`."""
    return store.read([], since)[1]


def write(
    store: Store, seq: int, viewers: Packed, candidates: Packed, *, replace: bool, extra: bytes = b""
) -> None:
    """Commit rows with `extra` as the journal's entry, or replace all with `extra` as the note."""
    (store.replace if replace else store.commit)(seq, viewers, candidates, extra)
