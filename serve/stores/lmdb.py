"""The embedded store: one LMDB environment, written by one process and read by many, without a server."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb

from serve.errors import StoreUnavailable
from serve.stores.lease import Lease, check_seq
from serve.stores.protocol import LOAD, MAX_REMOVED, Changes

MAP_SIZE = 64 << 30
"""Bytes of address space mapped, the most that a store can hold; the file takes only what was written."""
MAX_READERS = 1024
FORMAT = b"2"
DATABASES = (b"meta", b"viewers", b"candidates", b"changes", b"journal")
# LMDB takes keys of up to 511 bytes, and a key of `changes` spends 8 of them on the number.
MAX_PLAIN_KEY = 480
# LMDB does not write the pages at the file's end that one transaction both took and freed. A commit writes a
# key or removes it, so these are at most about as many as a tree is deep; more missing: it was cut short.
MAX_UNWRITTEN_PAGES = 8
DAMAGE = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)


class LmdbStore:
    """`Store` over the environment in `folder`; the writer makes it, a reader needs it to be there.

    Databases: `meta` (number, epoch, store id, format), `viewers` (key → row), `changes` (number + key → id
    and row, one entry per candidate, b"" for a removed one), `candidates` (key → number of its change) and
    `journal` (number → entry).
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self._lease = Lease(writable=writable)
        self._environment = _environment(folder.resolve())
        self._environment.join(self, writable)
        self._id: bytes | None = None  # of the store whose changes were last given out from the start

    def seq(self) -> int:
        """See `Store`."""
        with self._read() as (opened, txn):
            return _number(txn, opened, b"seq")

    def read(self, ids: Sequence[str], since: int) -> tuple[list[bytes | None], Changes]:
        """See `Store`."""
        keys = [_key(id_) for id_ in ids]
        with self._read() as (opened, txn):
            viewers = [txn.get(key, None, opened.viewers) for key in keys]
            return viewers, self._changes(opened, txn, since)

    def journal(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """See `Store`."""
        with self._read() as (opened, txn), txn.cursor(opened.journal) as cursor:
            found = cursor.set_range(_pack(after + 1))
            entries = islice(cursor.iternext(), limit) if found else ()
            return [(int.from_bytes(number, "big"), entry) for number, entry in entries]

    def take_lease(self) -> int:
        """See `Store`."""
        self._lease.require_writable()
        with self._environment.lease(self) as opened:
            with opened.env.begin(write=True) as txn:
                epoch = _number(txn, opened, b"epoch") + 1
                txn.put(b"epoch", _pack(epoch), db=opened.meta)
            return self._lease.take(opened.id, epoch)

    def commit(
        self,
        seq: int,
        viewers: Mapping[str, bytes],
        candidates: Mapping[str, bytes],
        *,
        replace: bool = False,
        journal: bytes = b"",
    ) -> None:
        """See `Store`; durable when it returns."""
        with self._write() as (opened, txn):
            check_seq(seq, _number(txn, opened, b"seq"))
            _write_viewers(txn, opened, viewers, replace)
            _write_candidates(txn, opened, seq, candidates, replace)
            if journal:
                txn.put(_pack(seq), journal, db=opened.journal, append=True)
            txn.put(b"seq", _pack(seq), db=opened.meta)

    def trim(self, through: int) -> None:
        """See `Store`."""
        with self._write() as (opened, txn), txn.cursor(opened.journal) as cursor:
            found = cursor.first()
            while found and cursor.key() <= _pack(through):
                found = cursor.delete() and bool(cursor.key())  # deleting moves on to the next

    def close(self) -> None:
        """See `Store`."""
        self._environment.leave(self)

    @contextmanager
    def _read(self) -> Iterator[tuple[_Opened, Any]]:
        # A read transaction never outlives its call: while one is open LMDB can reuse no page freed since.
        with self._environment.lease(self) as opened, opened.env.begin() as txn:
            yield opened, txn

    @contextmanager
    def _write(self) -> Iterator[tuple[_Opened, Any]]:
        self._lease.held()
        with self._environment.lease(self) as opened, opened.env.begin(write=True) as txn:
            self._lease.check(opened.id, _number(txn, opened, b"epoch"))
            yield opened, txn

    def _changes(self, opened: _Opened, txn: Any, since: int) -> Changes:
        seq, floor = _number(txn, opened, b"seq"), _number(txn, opened, b"floor")
        if self._id is None or since == 0:
            self._id = opened.id
        if since and not (self._id == opened.id and floor <= since <= seq):
            return Changes(0, {})
        if since == seq:
            return Changes(seq, {})
        with txn.cursor(opened.changes) as cursor:
            found = cursor.set_range(_pack(since + 1))
            values = cursor.iternext(keys=False, values=True) if found else ()
            return Changes(seq, dict(map(_unpack_change, values)))


@dataclass
class _Opened:
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


class _Environment:
    """The one environment that this process has open on a folder: LMDB forbids a second.

    Stores lease it for each call. When its file was replaced, deleted or found damaged, or a writer joins
    readers, the next lease closes it, once the others have ended, and opens what is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stores: dict[object, bool] = {}  # those that are open, and whether they write
        self._opened: _Opened | None = None
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
    def lease(self, store: object, *, create: bool = False) -> Iterator[_Opened]:
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

    def _current(self, store: object, create: bool) -> _Opened:
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


_environments: dict[Path, _Environment] = {}
_environments_lock = threading.Lock()


def _environment(folder: Path) -> _Environment:
    with _environments_lock:
        return _environments.setdefault(folder, _Environment(folder))


def _open(folder: Path, *, writable: bool, create: bool) -> _Opened:
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


def _read_layout(env: Any, folder: Path, writable: bool) -> _Opened:
    data = str(folder / "data.mdb")
    status = os.stat(data)
    opened = _Opened(env, data, writable, (status.st_dev, status.st_ino), status.st_size)
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


def _write_viewers(txn: Any, opened: _Opened, viewers: Mapping[str, bytes], replace: bool) -> None:
    if replace:
        txn.drop(opened.viewers, delete=False)
    _put_sorted(txn, opened.viewers, ((_key(id_), row) for id_, row in viewers.items() if row))
    for id_, row in viewers.items():
        if not row:
            txn.delete(_key(id_), db=opened.viewers)


def _write_candidates(
    txn: Any, opened: _Opened, seq: int, candidates: Mapping[str, bytes], replace: bool
) -> None:
    num_removed = _number(txn, opened, b"removed")
    changed: list[tuple[bytes, bytes]] = []
    pointers: list[tuple[bytes, bytes]] = []
    unnamed = dict.fromkeys(_known(txn, opened), b"") if replace else {}
    for id_, row in {**unnamed, **candidates}.items():
        key = _key(id_)
        pointer = txn.get(key, None, opened.candidates)
        old = b"" if pointer is None else _unpack_change(txn.get(pointer + key, b"", opened.changes))[1]
        if not row and not old:
            continue
        if pointer is not None:
            txn.delete(pointer + key, db=opened.changes)
        num_removed += (not row) - (pointer is not None and not old)
        changed.append((_pack(seq) + key, _pack_change(id_, row)))
        pointers.append((key, _pack(seq)))
    _put_sorted(txn, opened.changes, changed)
    _put_sorted(txn, opened.candidates, pointers)
    if num_removed > MAX_REMOVED:
        num_removed = _forget_removed(txn, opened, num_removed, seq)
    txn.put(b"removed", _pack(num_removed), db=opened.meta)


def _known(txn: Any, opened: _Opened) -> list[str]:
    with txn.cursor(opened.changes) as cursor:
        return [_unpack_change(value)[0] for value in cursor.iternext(keys=False, values=True)]


def _forget_removed(txn: Any, opened: _Opened, num_removed: int, newest: int) -> int:
    """Drop the oldest down to half the limit, so that few commits pay for it; how many are left."""
    with txn.cursor(opened.changes) as cursor:
        found = cursor.first()
        while found and num_removed > MAX_REMOVED // 2 and (pointer := cursor.key()[:8]) < _pack(newest):
            if _unpack_change(cursor.value())[1]:
                found = cursor.next()
                continue
            txn.delete(cursor.key()[8:], db=opened.candidates)
            txn.put(b"floor", pointer, db=opened.meta)
            cursor.delete()  # moves on to the next
            found = bool(cursor.key())
            num_removed -= 1
    return num_removed


def _put_sorted(txn: Any, database: Any, items: Iterable[tuple[bytes, bytes]]) -> None:
    """In key order, each leaf is written once; past the last key LMDB appends without searching."""
    rows = sorted(items)
    with txn.cursor(database) as cursor:
        append = bool(rows) and (not cursor.last() or cursor.key() < rows[0][0])
        cursor.putmulti(rows, append=append)


def _number(txn: Any, opened: _Opened, name: bytes) -> int:
    return int.from_bytes(txn.get(name, b"", opened.meta), "big")


def _pack(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _key(id_: str) -> bytes:
    """The id, or a digest of one too long for LMDB; no UTF-8 contains 0xff, so they never meet."""
    raw = id_.encode("utf-8", "surrogatepass")
    if 0 < len(raw) <= MAX_PLAIN_KEY:
        return raw
    return b"\xff" + hashlib.blake2b(raw, digest_size=32).digest()


def _pack_change(id_: str, row: bytes) -> bytes:
    raw = id_.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(2, "big") + raw + row


def _unpack_change(value: bytes) -> tuple[str, bytes]:
    end = 2 + int.from_bytes(value[:2], "big")
    return value[2:end].decode("utf-8", "surrogatepass"), value[end:]


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
    return StoreUnavailable(f"the store at {folder} cannot be used: {error}")
