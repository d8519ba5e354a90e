"""Read viewers or changes alone from a store, whose only read returns both."""

from __future__ import annotations

from collections.abc import Sequence

from serve.stores.protocol import Changes, Store


def read_viewers(store: Store, ids: Sequence[str]) -> list[bytes | None]:
    """Return the rows of `ids`."""
    return store.read(ids, 0)[0]


def read_changes(store: Store, since: int) -> Changes:
    """Return the candidates that changed after `since`."""
    return store.read([], since)[1]
