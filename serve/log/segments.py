"""Segments of the served log: journal records written as Parquet files, one folder per table."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.contract.errors import WriterFenced
from serve.contract.records import Candidate, Event, Forget, Viewer
from serve.contract.validation import refuse_file
from serve.features.field_types import TYPES
from serve.log.columns import ENTITY, EVENT, EXPOSURE, NUMBERS, STRINGS, UNSCORED
from serve.log.events import CANDIDATES, EVENT_IDS, EXPOSURE_IDS, VIEWERS, Ended, Exposure, JournalEntry, key
from serve.log.lease import Types, under_lease
from serve.log.reader import TABLES
from serve.log.snapshots import numbers
from serve.log.throttle import OnStep
from serve.storage.atomic_files import draft_path, put_once, sync
from serve.storage.bucket import BucketPath
from serve.storage.parquet import Damaged, footer, open_parquet, readable

log = logging.getLogger("tabrank")
# Number of a record, time of its arrival in ms, and the record.
Numbered = tuple[int, int, Any]
Columns = dict[str, pa.Array]
# The name of a segment has the numbers of its first and last record, and the epoch of the lease
# under which it was written.
NAME = re.compile(r"([0-9]{20})-([0-9]{20})-([0-9]{10})\.parquet")
# A row group is written once memory holds this many records plus their candidates, or this many
# bytes of the journal. Unpacked and as Arrow columns, they take six times as much.
AT_ONCE = 1 << 18
AT_ONCE_BYTES = 16 << 20
MAX_SEQ = 1 << 62


class Segment(NamedTuple):
    """Segment of one table: the numbers of its first and last record, its epoch, and its file."""

    first: int
    last: int
    epoch: int
    path: Path


class Segments:
    """Folder of one served log.

    A segment is written atomically and once: no other writer, and no later call, writes the same
    name. If a process dies after writing a segment and before trimming the journal, the next
    process writes a segment with the same records and further ones. Readers drop repeated numbers.

    `types` are the types of the fields of the surface whose records are written. `epoch` is the
    epoch of the writer's lease.
    """

    def __init__(self, folder: Path, types: Types, epoch: int = 0) -> None:
        refuse_file(folder)
        self.folder = folder
        self.types = types
        self.epoch = epoch
        self.damaged: set[Path] = set()

    def write(
        self, entries: Iterable[tuple[int, JournalEntry]], step: OnStep = lambda: True
    ) -> tuple[int, int, int]:
        """Write journal entries (at least one) as one segment of each table that has records.

        The entries are streamed in row groups; `step` is called after each group. The segments of
        all tables have the same name, whether or not a table has the first or last record.

        Returns:
            The number of the last record, the count of records, and their bytes in the journal.

        Raises:
            OSError: the disk is full or the folder cannot be written; existing files do not change.
        """
        first = last = num = num_bytes = 0

        def name() -> str:
            return f"{first:020d}-{last:020d}-{self.epoch:010d}.parquet"

        with ExitStack() as drafts:
            segment: dict[str, pq.ParquetWriter] = {}
            for records, size in _parts(entries, step):
                first, last = first or records[0][0], records[-1][0]
                num, num_bytes = num + len(records), num_bytes + size
                # The stack completes the drafts in the opposite order, so that events come last.
                for table, kinds, columns in reversed(self._tables()):
                    rows = [row for row in records if isinstance(row[2], kinds)]
                    if rows:
                        part = pa.table(columns(rows))
                        if table not in segment:
                            draft = draft_segment(self.folder / table, part.schema, first, self.epoch, name)
                            segment[table] = drafts.enter_context(draft)
                        segment[table].write_table(part)
                step()
        return last, num, num_bytes

    def recent_keys(self, num: int, after: int = 0) -> list[bytes]:
        """Return the keys that deduplicate the newest events and exposures, newest last.

        The result covers at least `num` of each kind, or all records above the number `after`, and
        may include older ones.
        """
        keys: list[bytes] = []
        for name, column, window in (("events", "id", EVENT_IDS), ("exposures", "request_id", EXPOSURE_IDS)):
            parts: list[list[bytes]] = []
            for first, table in self._newest(name, [column]):
                parts.append([key(window, id_) for id_ in table[column].to_pylist()])
                if sum(map(len, parts)) >= num or first <= after:
                    break
            keys += chain.from_iterable(reversed(parts))
        return keys

    def removals(self, since_ms: int) -> dict[bytes, int]:
        """Return the keys of removed viewers and candidates with their times in ms, newest last.

        The result covers the records received since `since_ms` and may include older ones.
        """
        removed: dict[bytes, int] = {}
        for name, window in (("viewers", VIEWERS), ("candidates", CANDIDATES)):
            parts: list[pa.Table] = []
            for _, table in self._newest(name, ["id", "ts_ms", "removed", "received_ms"]):
                parts.append(table.filter(table["removed"]))
                # `training forget` may have left a segment without rows.
                if len(table) and table["received_ms"][0].as_py() < since_ms:
                    break
            for part in reversed(parts):
                keys = (key(window, id_) for id_ in part["id"].to_pylist())
                removed.update(zip(keys, part["ts_ms"].to_pylist(), strict=True))
        return removed

    def _newest(self, name: str, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield the first number and some columns of each segment of a table, newest first.

        A damaged segment is skipped and added to `damaged`.
        """
        for segment in reversed(segments(self.folder, name)):
            path = segment.path
            with self.unless_damaged(path), readable(path), open_parquet(path) as file:
                yield segment.first, file.read(columns)

    @contextmanager
    def unless_damaged(self, path: Path) -> Iterator[None]:
        """Instead of raising, log the damage of a segment once and add its path to `damaged`."""
        try:
            yield
        except Damaged as error:
            if path not in self.damaged:
                self.damaged.add(path)
                log.error("%s. Until then a resent event of this segment counts twice", error)

    def _tables(self) -> tuple[tuple[str, tuple[type, ...], Callable[[list[Numbered]], Columns]], ...]:
        return (
            ("viewers", (Viewer, Forget), partial(self._upserts, "viewer")),
            ("candidates", (Candidate, Ended), self._candidates),
            ("exposures", (Exposure,), self._exposures),
            ("events", (Event,), partial(_columns, columns=EVENT)),
        )

    def _candidates(self, rows: list[Numbered]) -> Columns:
        ends = [getattr(record, "ends_ms", None) for _, _, record in rows]
        return self._upserts("candidate", rows) | {"ends_ms": pa.array(ends, pa.int64())}

    def _upserts(self, owner: str, rows: list[Numbered]) -> Columns:
        """Return the columns of attribute changes."""
        records = [record for _, _, record in rows]
        fields = [getattr(record, "fields", {}) for record in records]
        ids = [record.viewer if isinstance(record, Forget) else record.id for record in records]
        own: dict[str, list[Any]] = {
            "ts_ms": [record.ts_ms for record in records],
            "stated": [list(values) for values in fields],
            "removed": [isinstance(record, Forget | Ended) for record in records],
        }
        return {
            "id": pa.array(ids, ENTITY["id"]),
            **{
                name: pa.array([values.get(name) for values in fields], TYPES[type_].arrow)
                for name, type_ in self.types[owner].items()
            },
            **{name: pa.array(values, ENTITY[name]) for name, values in own.items()},
            **_numbers(rows),
        }

    def _exposures(self, rows: list[Numbered]) -> Columns:
        context = [(name, TYPES[type_].arrow) for name, type_ in self.types["context"].items()]
        columns = EXPOSURE | {"context": pa.struct(context)}
        if not context:
            del columns["context"]
        return _columns(rows, columns)


@contextmanager
def draft_segment(
    folder: Path, schema: pa.Schema, first: int, epoch: int, name: Callable[[], str]
) -> Iterator[pq.ParquetWriter]:
    """Yield the writer of a new segment in a table's folder.

    The segment gets the `name` when the block ends without an error, unless one of this name
    exists: it then holds the same records. `first` and `epoch` name the draft.

    Raises:
        WriterFenced: the log's lease has another epoch by now.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True)
        sync(folder.parent)
    draft, is_new = draft_path(folder / f"{first:020d}-{epoch:010d}"), False
    # On a disk, drafts are in the table's folder. Delete those of these records that a killed or
    # fenced writer left behind.
    if not isinstance(folder, BucketPath):
        for stale in folder.glob(f".{first:020d}-*.partial"):
            stale.unlink(missing_ok=True)
    try:
        # Numbers seldom repeat, so a dictionary of them would take most of the time, and more
        # bytes.
        with pq.ParquetWriter(draft, schema, compression="zstd", use_dictionary=_repeating(schema)) as writer:
            yield writer
        with under_lease(folder.parent, epoch):
            is_new = put_once(draft, folder / name())
    except WriterFenced:
        # Another writer that took the lease may have erased viewers, and writes these records
        # itself.
        if is_new:
            (folder / name()).unlink(missing_ok=True)
        raise
    finally:
        # Even a full disk may have created the file.
        draft.unlink(missing_ok=True)


def _repeating(schema: pa.Schema) -> list[str]:
    """Return the paths of the columns of strings, and of lists of strings."""
    ends = {str(pa.string()): "", str(STRINGS): ".list.element"}
    return [field.name + ends[str(field.type)] for field in schema if str(field.type) in ends]


def segments(log: Path, table: str) -> list[Segment]:
    """Return a table's segments in order; files with other names are ignored."""
    named = ((NAME.fullmatch(path.name), path) for path in (log / table).glob("*.parquet"))
    found = [Segment(int(match[1]), int(match[2]), int(match[3]), path) for match, path in named if match]
    # If two begin with the same record, the one that holds more comes first.
    return sorted(found, key=lambda segment: (segment.first, -segment.last, -segment.epoch))


def log_end(log: Path) -> int:
    """Return the number of a log's last record or snapshot; 0 without any."""
    ends = (segment.last for table in TABLES for segment in segments(log, table))
    return max([0, *ends, *numbers(log)])


def last_arrival_ms(log: Path) -> int:
    """Return the arrival of a log's last record, or 0.

    Raises:
        Damaged: one of the newest segments is damaged.
    """
    newest = (segment.path for table in TABLES for segment in segments(log, table)[-1:])
    return max(map(_last_arrival_ms, newest), default=0)


def _last_arrival_ms(path: Path) -> int:
    metadata = footer(path)
    # `training forget` may have left a segment without rows.
    if not metadata.num_row_groups:
        return 0
    columns = metadata.row_group(metadata.num_row_groups - 1).to_dict()["columns"]
    statistics = {each["path_in_schema"]: each["statistics"] for each in columns}
    return int(statistics["received_ms"]["max"])


def _columns(rows: list[Numbered], columns: Mapping[str, pa.DataType]) -> Columns:
    """Return columns of attributes of the records, and of their numbers."""
    return {
        name: pa.array(
            [_value(getattr(record, name), kind) for _, _, record in rows], kind, from_pandas=name in UNSCORED
        )
        for name, kind in columns.items()
    } | _numbers(rows)


def _value(value: Any, kind: pa.DataType) -> Any:
    """Return an attribute as its column has it: bytes as numbers, and an object as JSON."""
    if isinstance(value, bytes):
        return np.frombuffer(value, kind.value_type.to_pandas_dtype())
    if isinstance(value, dict) and pa.types.is_string(kind):
        return json.dumps(value) if value else None
    return value


def _parts(entries: Iterable[tuple[int, JournalEntry]], step: OnStep) -> Iterator[tuple[list[Numbered], int]]:
    """Yield (records, bytes) of one row group at a time, in order; call `step` after each entry."""
    part: list[Numbered] = []
    num = num_bytes = 0
    for last, entry in entries:
        first = last - len(entry.records) + 1
        part += ((seq, entry.received_ms, record) for seq, record in enumerate(entry.records, first))
        num += sum(1 + len(getattr(record, "candidates", ())) for record in entry.records)
        num_bytes += entry.num_bytes
        step()
        if num >= AT_ONCE or num_bytes >= AT_ONCE_BYTES:
            yield part, num_bytes
            part, num, num_bytes = [], 0, 0
    if part:
        yield part, num_bytes


def _numbers(rows: list[Numbered]) -> Columns:
    numbers = zip(*((seq, received_ms) for seq, received_ms, _ in rows), strict=True)
    return {name: pa.array(each, NUMBERS[name]) for name, each in zip(NUMBERS, numbers, strict=True)}
