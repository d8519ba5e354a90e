"""The LMDB environment under the embedded store: opened once in a process, checked, and opened afresh."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from serve.errors import StoreUnavailable
from serve.stores.protocol import LOAD

MAP_SIZE = 64 << 30
"""Bytes of address space mapped, the most that a store can hold; the file takes only what was written."""
MAX_READERS = 1024
FORMAT = b"3"
DATABASES = (b"meta", b"viewers", b"candidates", b"changes", b"journal")
# LMDB does not write the pages at the file's end that one transaction both took and freed. A commit writes a
# key or removes it, so these are at most about as many as a tree is deep; more missing: it was cut short.
MAX_UNWRITTEN_PAGES = 8
DAMAGE = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)
# LMDB tells a write that came out short, as the last one to a full disk does, as an input/output error.
DISK_FULL = tuple(map(os.strerror, (errno.EIO, errno.ENOSPC, errno.EDQUOT)))


@dataclass
class Opened:
    """An open environment, the handles of its databases, and the file that it belongs to."""

    env: Any
    data: str
    writable: bool
    file: tuple[int, int]
    size: int
    meta: Any = None
    viewers: Any = None
    candidates: Any = None
    changes: Any = None
    journal: Any = None
    id: bytes = b""

    def whole(self) -> bool:
        """Whether the file is the one that was opened and has not shrunk (a read past its end is SIGBUS)."""
        try:
            status = os.stat(self.data)
        except OSError:
            return False
        shrunk, self.size = status.st_size < self.size, status.st_size
        return (status.st_dev, status.st_ino) == self.file and not shrunk


class Environment:
    """The one environment that this process has open on a folder: LMDB forbids a second.

    Stores lease it for each call. When its file was replaced, deleted or found damaged, or a writer joins
    readers, the next lease closes it, once the others have ended, and opens what is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stores: dict[object, bool] = {}  # those that are open, and whether they write
        self._opened: Opened | None = None
        self._num_leases = 0
        self._changed = threading.Condition()

    def join(self, store: object, writable: bool) -> None:
        """Open the environment for one more store; one that writes creates it where it is missing."""
        with self._changed:
            self._stores[store] = writable
        try:
            with self.lease(store, create=writable):
                pass
        except BaseException:
            self.leave(store)
            raise

    def leave(self, store: object) -> None:
        """Close the environment with its last store, once every lease has ended."""
        with self._changed:
            self._stores.pop(store, None)
            if not self._stores:
                self._changed.wait_for(lambda: self._num_leases == 0)
            if not self._stores:
                self._close()

    @contextmanager
    def lease(self, store: object, *, create: bool = False) -> Iterator[Opened]:
        """The environment of the file that is there now, for one call of `store`."""
        with self._changed:
            opened = self._current(store, create)
            self._num_leases += 1
        try:
            yield opened
        except (lmdb.Error, OSError) as error:
            # After some failed writes LMDB refuses all that follow: the next lease opens it afresh.
            opened.file = (0, 0)
            raise _unavailable(self.folder, error) from error
        finally:
            with self._changed:
                self._num_leases -= 1
                self._changed.notify_all()

    def _current(self, store: object, create: bool) -> Opened:
        while store in self._stores:
            writable = any(self._stores.values())
            opened = self._opened
            if opened is not None and opened.whole() and (opened.writable or not writable):
                return opened
            if self._num_leases:
                self._changed.wait()
            else:
                self._close()
                self._opened = _open(self.folder, writable=writable, create=create)
        raise StoreUnavailable(f"the store at {self.folder} is closed; open it again")

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.env.close()
            self._opened = None


_environments: dict[Path, Environment] = {}
_environments_lock = threading.Lock()


def environment(folder: Path) -> Environment:
    """The environment of a folder, the same for all that ask in this process."""
    with _environments_lock:
        return _environments.setdefault(folder, Environment(folder))


def _open(folder: Path, *, writable: bool, create: bool) -> Opened:
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        elif not (folder / "data.mdb").exists():
            raise StoreUnavailable(_absent(folder))
        env = lmdb.open(
            str(folder),
            map_size=MAP_SIZE,
            max_dbs=len(DATABASES),
            max_readers=MAX_READERS,
            max_spare_txns=1,
            readonly=not writable,
            create=False,
        )
    except (lmdb.Error, OSError) as error:
        raise _unavailable(folder, error) from error
    try:
        return _read_layout(env, folder, writable)
    except BaseException as error:
        env.close()
        raise (_unavailable(folder, error) if isinstance(error, lmdb.Error) else error) from None


def _read_layout(env: Any, folder: Path, writable: bool) -> Opened:
    data = str(folder / "data.mdb")
    status = os.stat(data)
    opened = Opened(env, data, writable, (status.st_dev, status.st_ino), status.st_size)
    page_bytes = env.stat()["psize"]
    missing_bytes = (env.info()["last_pgno"] + 1) * page_bytes - status.st_size
    if missing_bytes > MAX_UNWRITTEN_PAGES * page_bytes:
        raise StoreUnavailable(_damaged(folder, f"data.mdb was cut short by {missing_bytes} bytes"))
    env.reader_check()
    if writable:
        with env.begin(write=True) as txn:
            meta = env.open_db(b"meta", txn=txn)
            if txn.get(b"id", db=meta) is None:
                for name in DATABASES:
                    env.open_db(name, txn=txn)
                txn.put(b"id", secrets.token_bytes(16), db=meta)
                txn.put(b"format", FORMAT, db=meta)
    try:
        # Not in a read transaction of ours: LMDB closes what that opened when py-lmdb resets it for reuse.
        opened.meta = env.open_db(b"meta", create=False)
        with env.begin() as txn:
            opened.id, written = (txn.get(name, b"", opened.meta) for name in (b"id", b"format"))
        if written != FORMAT:
            raise StoreUnavailable(_other_format(folder, written))
        handles = [env.open_db(name, create=False) for name in DATABASES[1:]]
    except lmdb.NotFoundError:
        raise StoreUnavailable(_absent(folder)) from None
    opened.viewers, opened.candidates, opened.changes, opened.journal = handles
    return opened


def _absent(folder: Path) -> str:
    surface = folder.name.rpartition("-")[0]
    others = [data.parent.name for data in folder.parent.glob("*/data.mdb")]
    others = sorted(name for name in others if name.rpartition("-")[0] == surface and name != folder.name)
    if others:
        return (
            f"the store in {folder.parent} holds another state schema "
            f"({', '.join(others)}, not {folder.name}); run {LOAD} again"
        )
    return f"there is no store at {folder}; make it with {LOAD}"


def _other_format(folder: Path, written: bytes) -> str:
    return f"the store at {folder} has format {written!r}, not {FORMAT!r}; delete that folder and run {LOAD} again"


def _damaged(folder: Path, what: object) -> str:
    return f"the store at {folder} is damaged: {what}; delete that folder and run {LOAD}"


def _unavailable(folder: Path, error: BaseException) -> StoreUnavailable:
    if isinstance(error, DAMAGE):
        return StoreUnavailable(_damaged(folder, error))
    says = str(error)
    if any(sign in says for sign in DISK_FULL):
        with suppress(OSError):  # of a disk that does not even tell
            says += f"; the disk may be full: {shutil.disk_usage(folder).free:,} bytes are free"
    return StoreUnavailable(f"the store at {folder} cannot be used: {says}")
