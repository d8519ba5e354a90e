"""Embedded store: an LMDB environment that one process writes and many read, without a server."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from serve.features.slots import Entity
from serve.storage.atomic_files import exclusive
from serve.stores.fencing import FencingEpoch, check_seq
from serve.stores.lmdb_environment import OpenEnvironment, environment
from serve.stores.protocol import MAX_REMOVED, Changes, Dump, Packed

# LMDB takes keys of up to 511 bytes, and a key of `changes` spends 8 of them on the number.
MAX_PLAIN_KEY = 480
# First byte of the key of a longer id; the rest is a digest.
DIGEST = b"\xff"
# File beside the database that each writing handle keeps locked; the lock ends with the process.
WRITER = ".writer.lock"


class LmdbStore:
    """`Store` over the LMDB environment in `folder`; a writer creates it, a reader requires it.

    Databases:

    - `meta`: number, epoch, origin, id of the content (a replacement gets a new one), format, note
    - `viewers`: key → row; if the key is a digest, the id precedes the row
    - `changes`: number + key → id and row, one entry per candidate, with row b"" for a removed one
    - `candidates`: key → number of its change
    - `journal`: number → entry
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self._epoch = FencingEpoch(writable=writable)
        self._environment = environment(folder.resolve())
        self._environment.join(self, writable)
        self._writer = folder / WRITER
        self._lock = os.open(self._writer, os.O_RDWR | os.O_CREAT, 0o600) if writable else None
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        # Id of the content whose changes were last read from 0.
        self._id: bytes | None = None

    def origin(self) -> str:
        """See `Store`."""
        with self._read() as (opened, txn):
            return bytes(txn.get(b"origin", b"", opened.meta)).hex()

    def seq(self) -> int:
        """See `Store`."""
        with self._read() as (opened, txn):
            return _number(txn, opened, b"seq")

    def read(self, ids: Sequence[str], since: int) -> tuple[list[bytes | None], Changes]:
        """See `Store`."""
        keys = [_key(id_) for id_ in ids]
        with self._read() as (opened, txn):
            return [_viewer(txn, opened, key) for key in keys], self._changes(opened, txn, since)

    def note(self) -> bytes:
        """See `Store`."""
        with self._read() as (opened, txn):
            return bytes(txn.get(b"note", b"", opened.meta))

    def viewers(self, cursor: bytes, limit: int) -> tuple[bytes, list[tuple[str, bytes]]]:
        """See `Store`."""
        with self._read() as (opened, txn), txn.cursor(opened.viewers) as at:
            found = at.set_range(cursor) if cursor else at.first()
            rows = list(islice(at, limit)) if found else []
            return at.key() + b"\0" if len(rows) == limit else b"", [_unpack_viewer(*row) for row in rows]

    def num_bytes(self) -> int:
        """See `Store`."""
        with self._read() as (opened, txn):
            databases = (opened.viewers, opened.candidates, opened.changes, opened.journal)
            pages = [txn.stat(database) for database in databases]
            names = ("branch_pages", "leaf_pages", "overflow_pages")
            return sum(page["psize"] * page[name] for page in pages for name in names)

    def journal(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """See `Store`."""
        with self._read() as (opened, txn), txn.cursor(opened.journal) as cursor:
            entries = islice(cursor.iternext(), limit) if cursor.set_range(_pack(after + 1)) else ()
            return [(int.from_bytes(number, "big"), entry) for number, entry in entries]

    @contextmanager
    def dump(self) -> Iterator[Dump]:
        """See `Store`. It is one read transaction: the file grows by the commits made meanwhile."""
        with self._read() as (opened, txn):
            yield Dump(_number(txn, opened, b"seq"), _rows(txn, opened))

    def refuse_writer(self, busy: str) -> None:
        """See `Store`."""
        with exclusive(self._writer, busy):
            pass

    def take_epoch(self) -> int:
        """See `Store`."""
        self._epoch.require_writable()
        with self._environment.use(self) as opened, opened.env.begin(write=True) as txn:
            epoch = _number(txn, opened, b"epoch") + 1
            txn.put(b"epoch", _pack(epoch), db=opened.meta)
            return self._epoch.take(_id(txn, opened), epoch)

    def commit(self, seq: int, viewers: Packed, candidates: Packed, journal: bytes = b"") -> None:
        """See `Store`. The commit is durable when the call returns."""
        with self._write(seq) as (opened, txn):
            _write_rows(txn, opened, seq, viewers, candidates)
            if journal:
                txn.put(_pack(seq), journal, db=opened.journal, append=True)

    def replace(self, seq: int, viewers: Packed, candidates: Packed, note: bytes = b"") -> None:
        """See `Store`. The commit is durable when the call returns."""
        id_ = secrets.token_bytes(16)
        with self._write() as (opened, txn):
            for database in (opened.viewers, opened.candidates, opened.changes):
                txn.drop(database, delete=False)
            numbers = {b"removed": 0, b"floor": seq, b"seq": seq}
            for name, value in (
                {name: _pack(n) for name, n in numbers.items()} | {b"note": note, b"id": id_}
            ).items():
                txn.put(name, value, db=opened.meta)
            _write_rows(txn, opened, seq, viewers, candidates)
        self._epoch.take(id_, self._epoch.held()[1])

    def trim(self, through: int) -> None:
        """See `Store`."""
        with self._write() as (opened, txn), txn.cursor(opened.journal) as cursor:
            found = cursor.first()
            while found and cursor.key() <= _pack(through):
                # `delete` moves the cursor to the next entry.
                found = cursor.delete() and bool(cursor.key())

    def close(self) -> None:
        """See `Store`."""
        self._environment.leave(self)
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    @contextmanager
    def _read(self) -> Iterator[tuple[OpenEnvironment, Any]]:
        # Only a dump keeps a read transaction open: meanwhile LMDB cannot reuse freed pages.
        with self._environment.use(self) as opened, opened.env.begin() as txn:
            yield opened, txn

    @contextmanager
    def _write(self, seq: int | None = None) -> Iterator[tuple[OpenEnvironment, Any]]:
        self._epoch.held()
        with self._environment.use(self) as opened, opened.env.begin(write=True) as txn:
            self._epoch.check(_id(txn, opened), _number(txn, opened, b"epoch"))
            if seq is not None:
                check_seq(seq, _number(txn, opened, b"seq"))
                txn.put(b"seq", _pack(seq), db=opened.meta)
            yield opened, txn

    def _changes(self, opened: OpenEnvironment, txn: Any, since: int) -> Changes:
        seq, floor, id_ = _number(txn, opened, b"seq"), _number(txn, opened, b"floor"), _id(txn, opened)
        if self._id is None or since == 0:
            self._id = id_
        if since and not (self._id == id_ and floor <= since <= seq):
            return Changes(0, {})
        if since == seq:
            return Changes(seq, {})
        with txn.cursor(opened.changes) as cursor:
            found = cursor.set_range(_pack(since + 1))
            values = cursor.iternext(keys=False, values=True) if found else ()
            return Changes(seq, dict(map(_unpack_change, values)))


def _viewer(txn: Any, opened: OpenEnvironment, key: bytes) -> bytes | None:
    value: bytes | None = txn.get(key, None, opened.viewers)
    return _unpack_change(value)[1] if value and key.startswith(DIGEST) else value


def _rows(txn: Any, opened: OpenEnvironment) -> Iterator[tuple[Entity, str, bytes]]:
    with txn.cursor(opened.viewers) as cursor:
        for key, value in cursor:
            yield ("viewer", *_unpack_viewer(key, value))
    with txn.cursor(opened.changes) as cursor:
        for value in cursor.iternext(keys=False, values=True):
            id_, row = _unpack_change(value)
            if row:
                yield "candidate", id_, row


def _write_rows(txn: Any, opened: OpenEnvironment, seq: int, viewers: Packed, candidates: Packed) -> None:
    _put_sorted(txn, opened.viewers, (_pack_viewer(id_, row) for id_, row in viewers.items() if row))
    for id_, row in viewers.items():
        if not row:
            txn.delete(_key(id_), db=opened.viewers)
    num_removed = _number(txn, opened, b"removed")
    changed: list[tuple[bytes, bytes]] = []
    pointers: list[tuple[bytes, bytes]] = []
    for id_, row in candidates.items():
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


def _forget_removed(txn: Any, opened: OpenEnvironment, num_removed: int, newest: int) -> int:
    """Forget the oldest removals down to half the limit; return the number of those left.

    Going down to half keeps this work rare.
    """
    with txn.cursor(opened.changes) as cursor:
        found = cursor.first()
        while found and num_removed > MAX_REMOVED // 2 and (pointer := cursor.key()[:8]) < _pack(newest):
            if _unpack_change(cursor.value())[1]:
                found = cursor.next()
                continue
            txn.delete(cursor.key()[8:], db=opened.candidates)
            txn.put(b"floor", pointer, db=opened.meta)
            # `delete` moves the cursor to the next entry.
            cursor.delete()
            found = bool(cursor.key())
            num_removed -= 1
    return num_removed


def _put_sorted(txn: Any, database: Any, items: Iterable[tuple[bytes, bytes]]) -> None:
    """Put the items in key order, so that LMDB writes each leaf page once.

    Items beyond the last key are appended without a search.
    """
    rows = sorted(items)
    with txn.cursor(database) as cursor:
        append = bool(rows) and (not cursor.last() or cursor.key() < rows[0][0])
        cursor.putmulti(rows, append=append)


def _number(txn: Any, opened: OpenEnvironment, name: bytes) -> int:
    return int.from_bytes(txn.get(name, b"", opened.meta), "big")


def _id(txn: Any, opened: OpenEnvironment) -> bytes:
    return bytes(txn.get(b"id", b"", opened.meta))


def _pack(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _key(id_: str) -> bytes:
    """Return the id, or a digest of an id that is too long for LMDB.

    UTF-8 never contains 0xff, so an id never equals a digest.
    """
    raw = id_.encode("utf-8", "surrogatepass")
    if 0 < len(raw) <= MAX_PLAIN_KEY:
        return raw
    return DIGEST + hashlib.blake2b(raw, digest_size=32).digest()


def _pack_viewer(id_: str, row: bytes) -> tuple[bytes, bytes]:
    key = _key(id_)
    return key, _pack_change(id_, row) if key.startswith(DIGEST) else row


def _unpack_viewer(key: bytes, value: bytes) -> tuple[str, bytes]:
    return _unpack_change(value) if key.startswith(DIGEST) else (key.decode("utf-8", "surrogatepass"), value)


def _pack_change(id_: str, row: bytes) -> bytes:
    raw = id_.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(2, "big") + raw + row


def _unpack_change(value: bytes) -> tuple[str, bytes]:
    end = 2 + int.from_bytes(value[:2], "big")
    return value[2:end].decode("utf-8", "surrogatepass"), value[end:]
