"""Fencing: only the handle that took the newest epoch may write to a store."""

from __future__ import annotations

from serve.contract.errors import WriterFenced


class FencingEpoch:
    """Fencing epoch of one store handle. It is stale once another handle takes the next one."""

    def __init__(self, *, writable: bool) -> None:
        self._writable = writable
        self._held: tuple[bytes, int] | None = None

    def require_writable(self) -> None:
        """Raise RuntimeError on a store that was opened for reading."""
        if not self._writable:
            raise RuntimeError("this store was opened for reading; open it with writable=True to commit")

    def take(self, token: bytes, epoch: int) -> int:
        """Hold the stored epoch and its token, which tells stores apart; return the epoch."""
        self._held = (token, epoch)
        return epoch

    def held(self) -> tuple[bytes, int]:
        """Return token and epoch; raise RuntimeError if this handle never took an epoch."""
        self.require_writable()
        if self._held is None:
            raise RuntimeError("this handle has no fencing epoch; call take_epoch() before the first commit")
        return self._held

    def check(self, token: bytes, epoch: int) -> None:
        """Raise WriterFenced unless the stored token and epoch are those of this handle."""
        held = self.held()
        if held != (token, epoch):
            raise WriterFenced(
                f"another writer has taken over this store, or it was replaced: its epoch is {epoch}, "
                f"and this writer's was {held[1]}; start again to write"
            )


def check_seq(seq: int, stored: int) -> None:
    """Raise ValueError unless `seq` is greater than the stored number."""
    if seq <= stored:
        raise ValueError(f"seq: {seq} is not after the stored {stored}; commit records in their order")
