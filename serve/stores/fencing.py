"""The right to write: one handle at a time has it, the one that took it last."""

from __future__ import annotations

from serve.contract.errors import LeaseLost


class Lease:
    """What a handle holds of it: nothing, until it took the lease; nothing of worth, once another did."""

    def __init__(self, *, writable: bool) -> None:
        self._writable = writable
        self._held: tuple[bytes, int] | None = None

    def require_writable(self) -> None:
        """Raise RuntimeError on a store that was opened for reading."""
        if not self._writable:
            raise RuntimeError("this store was opened for reading; open it with writable=True to commit")

    def take(self, token: bytes, epoch: int) -> int:
        """Remember the lease as it was stored: its epoch, and what tells it from one of another store."""
        self._held = (token, epoch)
        return epoch

    def held(self) -> tuple[bytes, int]:
        """The token and epoch of the lease; RuntimeError where the handle never took one."""
        self.require_writable()
        if self._held is None:
            raise RuntimeError("this store's lease was not taken; call take_lease() before the first commit")
        return self._held

    def check(self, token: bytes, epoch: int) -> None:
        """Raise LeaseLost unless what is stored is the lease that this handle took."""
        held = self.held()
        if held != (token, epoch):
            raise LeaseLost(
                f"another writer has taken over this store, or it was replaced: its epoch is {epoch}, "
                f"this one's was {held[1]}; start again to write"
            )


def check_seq(seq: int, stored: int) -> None:
    """Raise ValueError unless `seq` comes after the stored number."""
    if seq <= stored:
        raise ValueError(f"seq: {seq} is not after the stored {stored}; commit records in their order")
