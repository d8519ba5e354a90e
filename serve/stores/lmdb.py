"""Embedded store: an LMDB environment that one process writes and many read, without a server."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice, starmap
from pathlib import Path
from typing import Any

from serve.features.slots import Entity
from serve.storage.atomic_files import exclusive
from serve.stores.fencing import FencingEpoch, check_seq
from serve.stores.lmdb_environment import OpenEnvironment, environment
from serve.stores.protocol import Changes, Dump, Packed, decoded, encoded

# LMDB accepts keys of up to 511 bytes. The cursor that follows a viewer is one byte longer than its
# key.
MAX_PLAIN_KEY = 510
# First byte of the key of a longer id; the rest is a digest.
DIGEST = b"\xff"
# Separates the ids of a list; UTF-8 never contains it.
SEPARATOR = b"\xfe"
# Limits the bytes of the lists of changed ids, which hold some 200,000 different ids.
MAX_LISTS_BYTES = 8 << 20
# File beside the database that a handle for writing keeps locked. The lock ends with the process.
WRITER = ".writer.lock"
# File beside the database whose time of change is the writer's last heartbeat. In the database,
# each heartbeat would sync the disk.
HEARTBEAT = ".heartbeat"


class LmdbStore:
    """`Store` over the LMDB environment in `folder`; a writer creates it, a reader requires it.

    Databases:

    - `meta`: number, epoch, origin, id of the content (a replacement gets a new one), format, note
    - `viewers`, `candidates`: key → row; if the key is a digest, the id precedes the row
    - `changes`: number → ids of the candidates that the commit put or removed. To bound them, the
      lists of old commits are merged into one, with the newest of their numbers, and later
      forgotten.
    - `journal`: number → entry
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self._epoch = FencingEpoch(writable=writable)
        self._environment = environment(folder.resolve())
        self._environment.join(self, writable)
        self._writer, self._heartbeat = folder / WRITER, folder / HEARTBEAT
        self._lock = os.open(self._writer, os.O_RDWR | os.O_CREAT, 0o600) if writable else None
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        # The id of the content that was read from 0, and whose changes are read since.
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
        keys = [_key(encoded(id_)) for id_ in ids]
        with self._read() as (opened, txn):
            changes = Changes(*self._changes(opened, txn, since), self._beat_ms())
            return [_viewer(txn, opened, key) for key in keys], changes

    def note(self) -> bytes:
        """See `Store`."""
        with self._read() as (opened, txn):
            return bytes(txn.get(b"note", b"", opened.meta))

    def viewers(self, cursor: bytes, limit: int) -> tuple[bytes, list[tuple[str, bytes]]]:
        """See `Store`."""
        with self._read() as (opened, txn), txn.cursor(opened.viewers) as at:
            rows = list(islice(at, limit)) if at.set_range(cursor) else []
            return at.key() + b"\0" if len(rows) == limit else b"", list(starmap(_unpack, rows))

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
        """See `Store`. It is one read transaction, so the file grows by commits made meanwhile."""
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

    def beat(self) -> None:
        """See `Store`. It changes nothing in the database, so LMDB does not sync the disk."""
        with self._write():
            pass

    def replace(self, seq: int, viewers: Packed, candidates: Packed, note: bytes = b"") -> None:
        """See `Store`. The commit is durable when the call returns."""
        id_ = secrets.token_bytes(16)
        with self._write() as (opened, txn):
            for database in (opened.viewers, opened.candidates, opened.changes):
                txn.drop(database, delete=False)
            meta = {b"floor": _pack(seq), b"seq": _pack(seq), b"note": note, b"id": id_}
            for name, value in meta.items():
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
        # Only a dump keeps a read transaction open for long: LMDB cannot reuse freed pages
        # meanwhile.
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
            # Within the transaction no other writer can take the epoch.
            self._heartbeat.touch(0o600)

    def _beat_ms(self) -> int:
        with suppress(FileNotFoundError):
            return os.stat(self._heartbeat).st_mtime_ns // 1_000_000
        return 0

    def _changes(self, opened: OpenEnvironment, txn: Any, since: int) -> tuple[int, dict[str, bytes]]:
        """Return `seq` and `rows` of `Changes`."""
        seq, floor, id_ = _number(txn, opened, b"seq"), _number(txn, opened, b"floor"), _id(txn, opened)
        if self._id is None or since == 0:
            self._id = id_
        if since and not (self._id == id_ and floor <= since <= seq):
            return 0, {}
        if since == seq:
            return seq, {}
        with txn.cursor(opened.changes) as lists, txn.cursor(opened.candidates) as rows:
            if not since:
                return seq, dict(starmap(_unpack, rows))
            found = lists.set_range(_pack(since + 1))
            ids = _ids(list(lists.iternext(keys=False, values=True)) if found else [])
            changed = {}
            for raw in ids:
                # There are often thousands, so make no call for most of them.
                key = raw if len(raw) <= MAX_PLAIN_KEY else _key(raw)
                row = rows.get(key, b"")
                changed[raw.decode("utf-8", "surrogatepass")] = row if key is raw else row[2 + len(raw) :]
            return seq, changed


def _viewer(txn: Any, opened: OpenEnvironment, key: bytes) -> bytes | None:
    value: bytes | None = txn.get(key, None, opened.viewers)
    return _unpack(key, value)[1] if value and key.startswith(DIGEST) else value


def _rows(txn: Any, opened: OpenEnvironment) -> Iterator[tuple[Entity, str, bytes]]:
    for entity, database in (("viewer", opened.viewers), ("candidate", opened.candidates)):
        with txn.cursor(database) as cursor:
            for key, value in cursor:
                yield (entity, *_unpack(key, value))


def _write_rows(txn: Any, opened: OpenEnvironment, seq: int, viewers: Packed, candidates: Packed) -> None:
    _put(txn, opened.viewers, viewers)
    changed = _put(txn, opened.candidates, candidates)
    if changed:
        txn.put(_pack(seq), SEPARATOR.join(changed), db=opened.changes, append=True)
        _bound_lists(txn, opened)


def _put(txn: Any, database: Any, rows: Packed) -> list[bytes]:
    """Put and remove rows; return the ids of rows that this changed."""
    changed: list[bytes] = []
    items: list[tuple[bytes, bytes]] = []
    # In the order of the keys, LMDB finds most rows in the page of the row before.
    for id_ in sorted(rows):
        # There are often thousands, so make no call for most of them.
        raw, row = id_.encode("utf-8", "surrogatepass"), rows[id_]
        key = raw if len(raw) <= MAX_PLAIN_KEY else _key(raw)
        if row:
            items.append((key, row if key is raw else len(raw).to_bytes(2, "big") + raw + row))
        elif not txn.delete(key, db=database):
            continue
        changed.append(raw)
    # Digests come last. Rows beyond the last key are appended without a search.
    items.sort()
    with txn.cursor(database) as cursor:
        append = bool(items) and (not cursor.last() or cursor.key() < items[0][0])
        cursor.putmulti(items, append=append)
    return changed


def _bound_lists(txn: Any, opened: OpenEnvironment) -> None:
    """If the lists of changes are too long, merge the older half, or forget it if it stays long."""
    pages = txn.stat(opened.changes)
    num_pages, num_lists = pages["leaf_pages"] + pages["overflow_pages"], pages["entries"]
    if num_pages * pages["psize"] <= MAX_LISTS_BYTES or num_lists < 2:
        return
    with txn.cursor(opened.changes) as cursor:
        older = dict(islice(cursor, num_lists // 2))
    for each in older:
        txn.delete(each, db=opened.changes)
    number = max(older)
    merged = SEPARATOR.join(_ids(list(older.values())))
    if len(merged) > MAX_LISTS_BYTES // 2:
        txn.put(b"floor", number, db=opened.meta)
    else:
        txn.put(number, merged, db=opened.changes)


def _ids(lists: Sequence[bytes]) -> list[bytes]:
    """Return the ids of some lists, each id once, sorted as they are in each list."""
    ids = SEPARATOR.join(lists).split(SEPARATOR) if lists else []
    return ids if len(lists) < 2 else sorted(set(ids))


def _number(txn: Any, opened: OpenEnvironment, name: bytes) -> int:
    return int.from_bytes(txn.get(name, b"", opened.meta), "big")


def _id(txn: Any, opened: OpenEnvironment) -> bytes:
    return bytes(txn.get(b"id", b"", opened.meta))


def _pack(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _key(raw: bytes) -> bytes:
    """Return the id, or a digest of an id that is too long for LMDB.

    UTF-8 never contains 0xff, so an id never equals a digest.
    """
    if 0 < len(raw) <= MAX_PLAIN_KEY:
        return raw
    return DIGEST + hashlib.blake2b(raw, digest_size=32).digest()


def _unpack(key: bytes, value: bytes) -> tuple[str, bytes]:
    if not key.startswith(DIGEST):
        return decoded(key), value
    end = 2 + int.from_bytes(value[:2], "big")
    return decoded(value[2:end]), value[end:]
