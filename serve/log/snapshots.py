"""Snapshots: all rows of a state at one record number, to replay a log without its first records.

A snapshot is a folder `<log>/snapshots/<number, 20 digits>/`. It has the rows, as a store keeps
them, in files whose names contain their checksums, and `meta.json`, which names these files. The
metadata is written last: only then does the snapshot exist, or have new rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve.contract.errors import TabrankError
from serve.contract.rankings import VALUE
from serve.features.rows import Schema
from serve.features.slots import Entity, field_of_key
from serve.features.surface import read_surface
from serve.log.throttle import OnStep
from serve.storage.atomic_files import draft_path, put, remove_folder, sync, write_whole
from serve.storage.bucket import BucketError
from serve.storage.parquet import bounded_batches, open_parquet
from serve.stores.protocol import Store

logger = logging.getLogger("tabrank")
FORMAT = 3
FOLDER = "snapshots"
NAME = re.compile(r"[0-9]{20}")
META = "meta.json"
# File beside the snapshots with the truncation point. Records up to this number may be deleted.
TRUNCATION_FILE = "BEGIN"
STEMS: dict[Entity, str] = {"viewer": "viewers", "candidate": "candidates"}
ROWS = re.compile(r"(viewers|candidates)-[0-9a-f]{12}\.parquet")
WITHOUT = f"copy the log without its folder {FOLDER!r}: features then use only its remaining records"
SCHEMA = pa.schema([("id", pa.string()), ("row", pa.binary())])
# Limits the rows, and their bytes, in memory and in a row group. A row has up to some 100 KiB.
AT_ONCE = 4_096
AT_ONCE_BYTES = 16 << 20


@dataclass(frozen=True)
class Snapshot:
    """Snapshot that is complete on disk.

    `ts_ms` is no earlier than any record in it. `fingerprint` is that of the state's schema.
    `sha256` has the checksum of each file.
    """

    path: Path
    seq: int
    ts_ms: int
    fingerprint: str
    sha256: dict[str, str]
    surface: str

    def schema(self) -> Schema:
        """Return the schema of the state.

        Raises:
            TabrankError: this release keeps another state for the snapshot's surface.
        """
        with suppress(TabrankError):
            schema = Schema(read_surface(self.surface))
            if schema.fingerprint == self.fingerprint:
                return schema
        raise _other_state(self)

    def verify(self) -> None:
        """Raise TabrankError unless the files have the checksums in the metadata."""
        for name, wanted in self.sha256.items():
            try:
                digest = _sha256(self.path / name)
            except OSError as error:
                raise TabrankError(f"{self.path / name}: cannot be read: {error.strerror}") from None
            if digest != wanted:
                raise TabrankError(
                    f"{self.path / name}: damaged (its sha256 is not that in {META}); restore it from a backup, or "
                    f"delete {self.path}: another snapshot is then used"
                )

    def remove(self) -> None:
        """Remove its files, and the metadata first, without which there is no snapshot."""
        remove_folder(self.path, META)

    def file(self, entity: Entity) -> Path:
        """Return the path of an entity's rows."""
        return self.path / next(name for name in self.sha256 if name.startswith(STEMS[entity]))

    def ids(self, entity: Entity) -> pa.ChunkedArray:
        """Return the ids of all rows."""
        with open_parquet(self.file(entity)) as file:
            ids = file.read(["id"])["id"]
        return ids.filter(pc.invert(pc.starts_with(ids, VALUE)))

    def rows(self, among: Entity) -> Iterator[tuple[Entity, dict[str, bytes]]]:
        """Yield an entity and its packed rows by id, some thousand rows at a time.

        `among` selects the rows that a store keeps among viewers, or among candidates. Rows of
        fields' values are included.
        """
        for batch in bounded_batches(self.file(among), AT_ONCE):
            parts: defaultdict[Entity, dict[str, bytes]] = defaultdict(dict)
            for name, row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                parts[f"candidate.{field_of_key(name)}" if name[0] == VALUE else among][name] = row
            yield from parts.items()


def numbers(log: Path) -> list[int]:
    """Return the numbers of a log's snapshots in order; folders with other names are ignored."""
    found = [path.parent for path in (log / FOLDER).glob(f"[0-9]*/{META}")]
    for path in found:
        if not NAME.fullmatch(path.name):
            _report(f"{path} is ignored: its name is not that of a snapshot; move it out of the log")
    return sorted(int(path.name) for path in found if NAME.fullmatch(path.name))


@cache
def _report(what: str) -> None:
    logger.warning("%s", what)


def snapshots(log: Path) -> list[Snapshot]:
    """Return a log's snapshots, oldest first; report once if the metadata of one is damaged."""
    found = []
    for number in numbers(log):
        try:
            found.append(_read(log / FOLDER / f"{number:020d}"))
        except TabrankError as error:
            _report(f"{error}; until then this snapshot is not used")
    return found


def truncation_point(log: Path) -> int:
    """Return the truncation point: records up to this number may be deleted; 0 means none."""
    try:
        return int((log / FOLDER / TRUNCATION_FILE).read_text())
    except FileNotFoundError:
        return 0


def set_truncation_point(log: Path, seq: int) -> None:
    """Set the truncation point durably, before the records up to this number are deleted."""
    write_whole(log / FOLDER / TRUNCATION_FILE, f"{seq}\n".encode())


def replay_snapshots(log: Path) -> tuple[Snapshot, ...]:
    """Return the snapshots from which a truncated log can be replayed, oldest first.

    The result is empty for a log that was never truncated.

    Raises:
        TabrankError: the log is truncated and no snapshot is left.
    """
    first = truncation_point(log)
    if not first:
        return ()
    found = tuple(snapshot for snapshot in snapshots(log) if snapshot.seq >= first)
    if not found:
        raise TabrankError(
            f"{log / FOLDER}: records up to number {first} were deleted, and the snapshot that replaced them is "
            f"missing, damaged or of another release; restore it from a backup, or {WITHOUT}"
        )
    return found


def start(found: Sequence[Snapshot], fingerprint: str) -> Snapshot | None:
    """Return the first snapshot with this state fingerprint, verified; None if `found` is empty.

    Raises:
        TabrankError: all snapshots are of other states, or the snapshot is damaged.
    """
    fitting = next((snapshot for snapshot in found if snapshot.fingerprint == fingerprint), None)
    if fitting is not None:
        fitting.verify()
    elif found:
        raise _other_state(found[0])
    return fitting


def _other_state(found: Snapshot) -> TabrankError:
    """Return the refusal of a snapshot of another state."""
    return TabrankError(
        f"{found.path}: is a snapshot of another state (schema {found.fingerprint[:12]}). Use the surface with "
        f"which it was written; or {WITHOUT}"
    )


def copy(found: Sequence[Snapshot], log: Path) -> None:
    """Copy snapshots into another log, and set its truncation point to the first."""
    for snapshot in found:
        folder = log / FOLDER / snapshot.path.name
        folder.mkdir(parents=True)
        for name in (*snapshot.sha256, META):
            shutil.copyfile(snapshot.path / name, folder / name)
    if found:
        set_truncation_point(log, found[0].seq)


def write(log: Path, store: Store, schema: Schema, clock: Callable[[], int], step: OnStep) -> None:
    """Write a snapshot of the store atomically, unless it exists or `step` returns False.

    Raises:
        OSError: the disk is full or the folder cannot be written.
        StoreUnavailable: the store cannot be read, or was replaced meanwhile.
    """
    folder = log / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    clean_up(log)
    with store.dump() as dump:
        path = folder / f"{dump.seq:020d}"
        if not (path / META).exists():
            state = {"state_fingerprint": schema.fingerprint, "surface": schema.surface.text}
            meta = {"format": FORMAT, "seq": dump.seq, "ts_ms": clock(), **state}
            _write(path, dump.rows, meta, step)


def rewrite(snapshot: Snapshot, rows: Iterator[tuple[Entity, str, bytes]]) -> None:
    """Replace the rows of a snapshot; a reader finds either all of the old or all of the new rows.

    Raises:
        OSError: the disk is full or the folder cannot be written; the snapshot is unchanged.
    """
    meta = json.loads((snapshot.path / META).read_text())
    _write(snapshot.path, rows, meta, lambda: True)
    clean_up(snapshot.path.parent.parent)


def _write(path: Path, rows: Iterator[tuple[Entity, str, bytes]], meta: dict[str, Any], step: OnStep) -> None:
    """Write files of rows, and then the metadata that names them, unless `step` ends the work."""
    drafts = {entity: draft_path(path.with_name(f"{path.name}-{stem}")) for entity, stem in STEMS.items()}
    try:
        if _write_rows(drafts, rows, step):
            path.mkdir(exist_ok=True)
            meta["sha256"] = {}
            for entity, draft in drafts.items():
                digest = _sha256(draft)
                meta["sha256"][f"{STEMS[entity]}-{digest[:12]}.parquet"] = digest
            files = dict(zip(meta["sha256"], drafts.values(), strict=True))
            for name, draft in files.items():
                put(draft, path / name)
            sync(path.parent)
            write_whole(path / META, (json.dumps(meta, indent=2) + "\n").encode())
            for name, draft in files.items():
                # Another process may have taken this one for dead, and have cleaned up its files.
                if not (path / name).exists():
                    put(draft, path / name)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def leftovers(log: Path) -> Iterator[Path]:
    """Yield files of rows that no snapshot has, because it was not finished or got new rows."""
    yield from (log / FOLDER).glob(".*.partial")
    found = [path for path in (log / FOLDER).glob("*/*") if ROWS.fullmatch(path.name)]
    for folder in {path.parent for path in found}:
        # Nobody knows which files belong to a snapshot that cannot be read, so keep them all.
        with suppress(TabrankError):
            named = _read(folder).sha256 if (folder / META).exists() else ()
            yield from (path for path in found if path.parent == folder and path.name not in named)


def clean_up(log: Path) -> None:
    """Finish or undo what a killed process began; the caller holds the log's lock."""
    for path in leftovers(log):
        path.unlink()


def _write_rows(drafts: dict[Entity, Path], rows: Iterator[tuple[Entity, str, bytes]], step: OnStep) -> bool:
    """Write the rows; return False if `step` ended the work early."""
    waiting: dict[Entity, list[tuple[str, bytes]]] = {entity: [] for entity in drafts}
    with ExitStack() as files:
        writers = {
            entity: files.enter_context(pq.ParquetWriter(draft, SCHEMA, compression="zstd"))
            for entity, draft in drafts.items()
        }
        for entity, id_, row in rows:
            waiting[entity].append((id_, row))
            if len(waiting[entity]) >= min(AT_ONCE, 1 + AT_ONCE_BYTES // max(1, len(row))):
                if not step():
                    return False
                writers[entity].write_batch(_batch(waiting[entity]))
                waiting[entity] = []
        for entity, left in waiting.items():
            writers[entity].write_batch(_batch(left))
    return True


def _batch(rows: Sequence[tuple[str, bytes]]) -> pa.RecordBatch:
    ids, packed = zip(*rows, strict=True) if rows else ((), ())
    return pa.record_batch([pa.array(ids, pa.string()), pa.array(packed, pa.binary())], schema=SCHEMA)


def _read(path: Path) -> Snapshot:
    try:
        meta = json.loads((path / META).read_text())
        if meta["format"] == FORMAT:
            state = meta["state_fingerprint"], meta["sha256"], meta["surface"]
            return Snapshot(path, meta["seq"], meta["ts_ms"], *state)
    except BucketError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TabrankError(f"{path / META}: not readable: {error}; restore it from a backup") from None
    raise TabrankError(f"{path / META}: format {meta['format']!r} is not {FORMAT}; {WITHOUT}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
