"""LMDB environment of the embedded store: open it once per process, check it, and reopen it."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lmdb

from serve.contract.errors import StoreMissing, StoreUnavailable
from serve.stores.lmdb_pages import num_missing
from serve.stores.protocol import LOAD

# How many bytes of address space are mapped, which limits a store's size. The file takes only the
# bytes that were written.
MAP_SIZE = 64 << 30
MAX_READERS = 1024
FORMAT = b"4"
DATABASES = (b"meta", b"viewers", b"candidates", b"changes", b"journal")
# Place and size of LMDB's magic number in a meta page. A lock file begins with the same number.
_MAGIC_AT, _MAGIC_BYTES = 16, 4
DAMAGE = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)
# LMDB reports a short write, such as the last one to a full disk, as an input/output error.
DISK_FULL = tuple(map(os.strerror, (errno.EIO, errno.ENOSPC, errno.EDQUOT)))


class OpenEnvironment:
    """Open LMDB environment: the handles of its databases, and its files.

    LMDB maps the files, and a read past the end of one raises SIGBUS. They are therefore checked
    before every use, which takes 7 µs. A file that is truncated during a read still ends the
    process.
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self.writable = writable
        self.env = lmdb.open(
            str(folder),
            map_size=MAP_SIZE,
            max_dbs=len(DATABASES),
            max_readers=MAX_READERS,
            max_spare_txns=1,
            readonly=not writable,
            create=False,
            mode=0o600,
        )
        self._descriptors: list[int] = []
        self._first: list[os.stat_result] = []
        try:
            self._open_files(folder)
            if writable:
                _create_databases(self.env)
            self._open_databases(folder)
        except BaseException:
            self.close()
            raise

    def _open_files(self, folder: Path) -> None:
        page_bytes = self.env.stat()["psize"]
        # A read-only disk has no lock file.
        self._paths = [str(path) for path in (folder / "data.mdb", folder / "lock.mdb") if path.exists()]
        # Close these after LMDB's own: POSIX releases the locks on a file when any descriptor of it
        # is closed.
        self._descriptors = [os.open(path, os.O_RDONLY) for path in self._paths]
        self._places = [(0, _MAGIC_AT), (0, page_bytes + _MAGIC_AT), (1, 0)][: len(self._paths) + 1]
        self._first = self._seen = [os.stat(path) for path in self._paths]
        self._magic = self._read_magic()
        self.env.reader_check()
        with self.env.begin():
            missing = num_missing(self._descriptors[0], page_bytes)
        if missing:
            raise StoreUnavailable(_damaged(folder, f"data.mdb was cut short: it lacks {missing} pages"))

    def _open_databases(self, folder: Path) -> None:
        # Open without a read transaction of our own: when py-lmdb resets a transaction for reuse,
        # LMDB closes the databases opened in it.
        self.meta = self.env.open_db(b"meta", create=False)
        with self.env.begin() as txn:
            written = txn.get(b"format", b"", self.meta)
        if written != FORMAT:
            raise StoreUnavailable(
                f"the store at {folder} has format {written!r}, not {FORMAT!r}; delete that folder and run {LOAD} again"
            )
        handles = [self.env.open_db(name, create=False) for name in DATABASES[1:]]
        self.viewers, self.candidates, self.changes, self.journal = handles

    def is_whole(self) -> bool:
        """Return True if its files are the opened ones, neither truncated nor overwritten."""
        try:
            found = [os.stat(path) for path in self._paths]
            magic = self._read_magic()
        except OSError:
            return False
        before, self._seen = self._seen, found
        return magic == self._magic and all(
            now.st_ino == then.st_ino and now.st_dev == then.st_dev and now.st_size >= then.st_size
            for now, then in zip(found, before, strict=True)
        )

    def forget(self) -> None:
        """Make the next check report a change."""
        self._magic = b""

    def close(self) -> None:
        """Close the environment and its files."""
        # LMDB writes to the lock file when it closes, so first restore the length of a truncated
        # one.
        with suppress(OSError):
            for before in self._first[1:]:
                path = self._paths[1]
                now = os.stat(path)
                if os.path.samestat(now, before) and now.st_size < before.st_size:
                    os.truncate(path, before.st_size)
        self.env.close()
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _read_magic(self) -> bytes:
        return b"".join(
            os.pread(self._descriptors[file], _MAGIC_BYTES, place) for file, place in self._places
        )


class Environment:
    """The process's only open environment of a folder: LMDB forbids a second one.

    Each call of a store runs within `use`. If the file was replaced, deleted or found damaged, or
    if a writer joins readers, the next use waits for the others, closes the environment and opens
    the file that is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The open stores, each with True if it writes.
        self._stores: dict[object, bool] = {}
        self._opened: OpenEnvironment | None = None
        self._num_uses = 0
        self._changed = threading.Condition()

    def join(self, store: object, writable: bool) -> None:
        """Open the environment for one more store; a writer creates a missing environment."""
        with self._changed:
            self._stores[store] = writable
        try:
            with self.use(store, create=writable):
                pass
        except BaseException:
            self.leave(store)
            raise

    def leave(self, store: object) -> None:
        """Remove a store; after the last one, close the environment once no call uses it."""
        with self._changed:
            self._stores.pop(store, None)
            if not self._stores:
                self._changed.wait_for(lambda: self._num_uses == 0)
            if not self._stores:
                self._close()

    @contextmanager
    def use(self, store: object, *, create: bool = False) -> Iterator[OpenEnvironment]:
        """Keep the environment of the current file open for one call of `store`."""
        with self._changed:
            opened = self._current(store, create)
            self._num_uses += 1
        try:
            yield opened
        # An OSError comes from the caller's own code, so the store must not be blamed for it.
        except lmdb.Error as error:
            # After some failed writes LMDB refuses all later ones, so make the next use reopen it.
            opened.forget()
            raise _unavailable(self.folder, error) from error
        except UnicodeDecodeError as error:
            opened.forget()
            raise StoreUnavailable(_damaged(self.folder, f"an id is not text: {error}")) from error
        finally:
            with self._changed:
                self._num_uses -= 1
                self._changed.notify_all()

    def _current(self, store: object, create: bool) -> OpenEnvironment:
        while store in self._stores:
            writable = any(self._stores.values())
            opened = self._opened
            if opened is not None and opened.is_whole() and (opened.writable or not writable):
                return opened
            if self._num_uses:
                self._changed.wait()
            else:
                self._close()
                self._opened = _open(self.folder, writable=writable, create=create)
        raise StoreUnavailable(f"the store at {self.folder} is closed; open it again")

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None


_environments: dict[Path, Environment] = {}
_environments_lock = threading.Lock()


def environment(folder: Path) -> Environment:
    """Return the environment of a folder, shared by all its stores in this process."""
    with _environments_lock:
        return _environments.setdefault(folder, Environment(folder))


def _open(folder: Path, *, writable: bool, create: bool) -> OpenEnvironment:
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        data = folder / "data.mdb"
        if data.exists() and not data.stat().st_size:
            # LMDB would begin a new store in an empty file.
            raise StoreUnavailable(_damaged(folder, "data.mdb is empty"))
        if not create and not data.exists():
            raise _absent(folder)
        return OpenEnvironment(folder, writable=writable)
    except lmdb.NotFoundError:
        raise _absent(folder) from None
    except (lmdb.Error, OSError) as error:
        raise _unavailable(folder, error) from error


def _create_databases(env: Any) -> None:
    with env.begin(write=True) as txn:
        meta = env.open_db(b"meta", txn=txn)
        if txn.get(b"id", db=meta) is None:
            for name in DATABASES:
                env.open_db(name, txn=txn)
            for name in (b"id", b"origin"):
                txn.put(name, secrets.token_bytes(16), db=meta)
            txn.put(b"format", FORMAT, db=meta)


def _absent(folder: Path) -> StoreMissing:
    others = sorted(data.parent.name for data in folder.parent.glob("*/data.mdb") if data.parent != folder)
    beside = f" (there is {', '.join(others)})" if others else ""
    return StoreMissing(f"there is no store at {folder}{beside}; make it with {LOAD}", tuple(others))


def _damaged(folder: Path, what: object) -> str:
    return f"the store at {folder} is damaged: {what}; delete that folder and run {LOAD}"


def _unavailable(folder: Path, error: BaseException) -> StoreUnavailable:
    if isinstance(error, DAMAGE):
        return StoreUnavailable(_damaged(folder, error))
    reason = str(error)
    if any(sign in reason for sign in DISK_FULL):
        # A disk that fails may not report its usage either.
        with suppress(OSError):
            reason += f"; the disk may be full: {shutil.disk_usage(folder).free:,} bytes are free"
    return StoreUnavailable(f"the store at {folder} cannot be used: {reason}")
