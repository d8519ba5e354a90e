"""Stream of a log in parts of bounded size, in the order in which a replay applies its records.

Records are ordered by a *key*: the time of a record without a number, or the number of a record
that has one. Each of the four tables is read batch by batch. A part then takes from all tables the
rows whose key is below the least key that any table may still bring. A file's rows may have any
order; a file that is ordered by time takes the least memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.features.rows import EVER_MS
from serve.features.slots import I64
from serve.features.surface import Surface
from serve.log.reader import (
    ONLY_TESTS,
    TABLES,
    Log,
    canonical,
    filled,
    is_live,
    no_rows,
    own_columns,
    table_paths,
)
from serve.log.segments import MAX_SEQ, NAME, Segment, segments
from serve.log.snapshots import truncation_point
from serve.log.table_reader import TableReader
from serve.storage.conversion import IDS, converted
from serve.storage.memory import available_bytes
from serve.storage.parquet import (
    data_files,
    footer,
    open_parquet,
    readable,
    row_groups,
    rows_at_once,
    unmerged,
)

# Limits the values of a column that are read at once, where each id of a list counts, and their
# bytes. This is some 2,000 rankings of 55 candidates. A replay takes some 100 bytes for each value.
VALUES_AT_ONCE = 1 << 17
BYTES_AT_ONCE = 16 << 20
# How many shown candidates a sample of the joins has: 10,000 rankings of 55. Counting them takes
# some 100 MB.
SAMPLE_VALUES = 1 << 19
# A number above every key.
END = np.iinfo(np.int64).max


class LogStream:
    """Iterator over a log as successive parts, each a `Log` with all records of its range of keys.

    First come the records without a number (flat tables), by time, unless `after` is given. Then
    come the records whose number is above `after` and up to `through`, by number. A service writes
    no table for which it has no record, so tables may be missing if `after` is given.

    Test traffic is left out, and so are repeated records: segments that are being merged repeat
    numbers, and flat tables may repeat ids. An event without a number gets the time that
    `event_times` gives it in the whole log.

    16 bytes per ranking and one byte per row of flat tables stay in memory. `num_flat` counts their
    rows.

    Raises:
        TabrankError: the log is invalid, as for `read_log`.
    """

    def __init__(
        self, folder: Path, surface: Surface, after: int | None = None, through: int = MAX_SEQ
    ) -> None:
        self.after, self._through = after, through
        self._tables = {name: _Table(folder, name, surface, after, through) for name in TABLES}
        self._tables["events"].exposures = self._tables["exposures"].shown
        self.num_flat = sum(len(table.dropped) for table in self._tables.values())

    def __iter__(self) -> Iterator[Log]:
        """Yield the parts."""
        tables, num_exposures, end = self._tables, 0, 0
        while end <= self._through:
            min(tables.values(), key=lambda table: table.floor).read()
            end = min(self._through + 1, *(table.floor for table in tables.values()))
            part = Log(**{name: table.take(end) for name, table in tables.items()})
            num_exposures += len(part.exposures)
            if any(len(getattr(part, name)) for name in TABLES):
                yield part
        if not num_exposures and self.after is None and self._through == MAX_SEQ:
            raise TabrankError(ONLY_TESTS)


class _Table:
    """One table: the rows that were read but not taken yet, and the least key of the other rows."""

    def __init__(self, folder: Path, name: str, surface: Surface, after: int | None, through: int) -> None:
        self._folder, self._name, self._surface = folder, name, surface
        self._after, self._through = after or 0, through
        self._is_rest = after is not None
        paths, self._flat, self._segments = _files(folder, name, may_lack=self._is_rest)
        empty = canonical(name, TableReader(folder, pa.table({}), name), surface)
        self._columns = empty.column_names
        self._held, self._keys = empty, np.zeros(0, np.int64)
        # For a moment, eight times as much memory is needed: four tables, and a copy of each.
        self._most_bytes = available_bytes() // 8
        if self._is_rest:
            # Flat tables that were exported from a service have numbers, and are read by them.
            self._flat = [path for path in self._flat if "seq" in footer(path).schema.names]
        # Hashes of the request ids of live exposures, in order, and their times.
        self.exposures = self.shown = np.zeros(0, np.int64), np.zeros(0, np.int64)
        # Which rows of the flat files repeat a record.
        self.dropped: NDArray[np.bool_] = np.zeros(0, bool)
        self._look()
        if paths and not (self._is_rest or len(self.dropped) or self._segments):
            raise no_rows(paths[0])
        self._batches = self._read()
        self.floor = EVER_MS

    def read(self) -> None:
        """Read the next rows."""
        rows, keys, self.floor = next(self._batches, (self._held[:0], self._keys[:0], END))
        self._held = pa.concat_tables([self._held, rows])
        if self._held.nbytes > self._most_bytes:
            raise TabrankError(
                f"{self._folder}: rows of {self._name} that belong together take over {self._most_bytes / 1e9:.1f} GB "
                "of memory, an eighth of what is free; leave out long strings, or order the file by time"
            )
        self._keys = np.concatenate([self._keys, keys])

    def take(self, end: int) -> pa.Table:
        """Take the rows whose key is below `end`, in the order of the files."""
        is_taken = self._keys < end
        if not is_taken.any():
            return self._held[:0]
        taken = self._held.filter(pa.array(is_taken))
        self._held, self._keys = self._held.filter(pa.array(~is_taken)), self._keys[~is_taken]
        return taken

    def _look(self) -> None:
        """Read keys and ids of flat files, to find least keys, repeats, and exposures' times."""
        id_ = {"exposures": "request_id", "events": "id"}.get(self._name, "seq")
        parts, lives, times, least, num = [], [], [], [], 0
        for path, first_row, raw in self._raw({"ts_ms", "seq", "traffic", id_}):
            reader = TableReader(path, raw, self._name, first_row)
            reader.optional("ts_ms").optional("seq")
            if id_ != "seq":
                reader.required(id_)
            rows = reader.table
            parts.append(filled(rows, "seq") if id_ == "seq" else _hashes(rows[id_]))
            if self._name == "exposures":
                lives.append(is_live(reader.optional("traffic").table).to_numpy())
                times.append(filled(rows, "ts_ms"))
            least.append(_key(rows, num).min())
            num += len(rows)
        self.dropped = np.zeros(num, bool)
        # For each batch, the least key of it and of all batches that follow.
        self._least = np.minimum.accumulate([END, *reversed(least)])[::-1]
        if num:
            ids = np.concatenate(parts)
            del parts
            # Test traffic and records without an id do not repeat others.
            counts = np.concatenate(lives) if lives else ids != 0
            ordered = ids[counts]
            ordered.sort()
            twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
            del ordered
            at = np.flatnonzero(counts & np.isin(ids, twice)) if len(twice) else np.zeros(0, np.int64)
            self.dropped[np.delete(at, np.unique(ids[at], return_index=True)[1])] = True
            if lives:
                at = np.flatnonzero(counts & ~self.dropped)
                at = at[np.argsort(ids[at])]
                self.shown = ids[at], np.concatenate(times)[at]

    def _read(self) -> Iterator[tuple[pa.Table, I64, int]]:
        """Yield rows, their keys, and the least key of the rows that follow."""
        coming = self._after + 1 if self._segments else END
        num = 0
        for place, (path, first_row, raw) in enumerate(self._raw(self._columns), 1):
            rows = self._canonical(path, raw, first_row)
            keys = _key(rows, num)
            is_kept = ~self.dropped[num : num + len(rows)]
            num += len(rows)
            if self._is_rest:
                is_kept &= filled(rows, "seq") > self._after
            if self._name == "events":
                rows, keys = self._corrected(rows, keys)
            floor = min(int(self._least[place]), coming)
            yield *self._live(rows.filter(pa.array(is_kept)), keys[is_kept]), floor
        last, paths = self._after, self._segments
        begins = truncation_point(self._folder)
        while paths and paths[0].first <= self._through:
            # Segments are ordered so that one comes before others whose records it holds too.
            segment, *rest = paths
            try:
                if segment.last > last:
                    for first_row, raw in _batches(segment.path, self._name, self._columns):
                        TableReader(segment.path, raw, self._name, first_row).required("seq")
                        rows = self._canonical(segment.path, raw, first_row)
                        rows = rows.filter(pc.greater(rows["seq"], last))
                        keys = rows["seq"].to_numpy()
                        last = int(keys.max(initial=last))
                        yield *self._live(rows, keys), last + 1
                paths = rest
            except FileNotFoundError:
                if truncation_point(self._folder) > max(begins, last):
                    raise TabrankError(
                        f"{segment.path}: deleted while the log was read, because it is older than keep_log_days; "
                        "run the command again"
                    ) from None
                # The segment was merged with others: list them again.
                paths = segments(self._folder, self._name)
                if segment in paths:
                    raise TabrankError(f"{segment.path}: leads to no file; delete the link") from None

    def _raw(self, columns: Collection[str]) -> Iterator[tuple[Path, int, pa.Table]]:
        """Yield (path, first row, rows) of flat files; the batches do not depend on the columns."""
        for path in self._flat:
            for first_row, raw in _batches(path, self._name, columns, self._columns):
                yield path, first_row, raw

    def _canonical(self, path: Path, raw: pa.Table, first_row: int) -> pa.Table:
        reader = TableReader(path, raw, self._name, first_row)
        rows = canonical(self._name, reader, self._surface, is_served=bool(self._segments))
        return rows.select(self._columns)

    def _live(self, rows: pa.Table, keys: I64) -> tuple[pa.Table, I64]:
        if self._name != "exposures":
            return rows, keys
        live = is_live(rows)
        return rows.filter(live), keys[live.to_numpy()]

    def _corrected(self, rows: pa.Table, keys: I64) -> tuple[pa.Table, I64]:
        """Give events without a number the time of their exposure if that is later."""
        hashed, shown_ms = self.exposures
        if not len(hashed):
            return rows, keys
        wanted = _hashes(rows["request_id"])
        at = np.minimum(np.searchsorted(hashed, wanted), len(hashed) - 1)
        ts_ms = rows["ts_ms"].to_numpy()
        is_late = (hashed[at] == wanted) & (shown_ms[at] > ts_ms) & (keys < 0)
        ts_ms = np.where(is_late, shown_ms[at], ts_ms)
        place = rows.column_names.index("ts_ms")
        return rows.set_column(place, "ts_ms", pa.array(ts_ms)), np.where(keys < 0, ts_ms - MAX_SEQ, keys)


@unmerged
def join_sample(folder: Path) -> tuple[dict[str, pa.Table], float]:
    """Return tables whose joins `check_joins` can count, and the share of the log in them.

    If a log has many rankings, the tables have only a share of the viewers and requests, chosen by
    hash, and their events. They have all ids of viewers and candidates.
    """
    groups = (
        group for path in _paths(folder, "exposures") for group in row_groups(footer(path), ["candidates"])
    )
    one_of = 1 + sum(column.num_values for _, columns in groups for column in columns) // SAMPLE_VALUES
    sample = {}
    for name in TABLES:
        parts = [_joining(TableReader(folder, pa.table({}), name), name)]
        for path in _paths(folder, name):
            for first_row, raw in _batches(path, name, parts[0].column_names):
                rows = _joining(TableReader(path, raw, name, first_row), name)
                owners = [rows[column] for column in ("request_id", "viewer") if column in rows.column_names]
                if owners and one_of > 1:
                    hits = [(_hashes(ids) % one_of == 0) & ids.is_valid().to_numpy() for ids in owners]
                    rows = rows.filter(pa.array(np.any(hits, axis=0)))
                parts.append(rows)
        sample[name] = pa.concat_tables(parts)
    return sample, 1 / one_of


def _joining(reader: TableReader, name: str) -> pa.Table:
    return own_columns(name, reader).optional("seq").table


def _paths(folder: Path, name: str) -> list[Path]:
    _, flat, served = _files(folder, name)
    return [*flat, *(segment.path for segment in served)]


def _files(
    folder: Path, name: str, *, may_lack: bool = False
) -> tuple[list[Path], list[Path], list[Segment]]:
    """Return the paths of a table, its flat files, and its segments."""
    is_there = not may_lack or (folder / name).exists() or (folder / f"{name}.parquet").exists()
    paths, served = table_paths(folder, name) if is_there else [], segments(folder, name)
    files = (file for path in paths for file in data_files(path))
    # Segments may have been merged meanwhile. Their names tell them from flat files.
    return (
        paths,
        [file for file in files if not (file.parent == folder / name and NAME.fullmatch(file.name))],
        served,
    )


def _key(rows: pa.Table, first_row: int) -> I64:
    """Return each row's key: a number is above 0, a time below 0. Rows without both come first."""
    seq, ts_ms = filled(rows, "seq"), filled(rows, "ts_ms") - MAX_SEQ
    never = EVER_MS + first_row + np.arange(len(rows))
    return np.where(seq > 0, seq, np.where(rows["ts_ms"].is_valid().to_numpy(), ts_ms, never))


def _hashes(strings: pa.ChunkedArray) -> I64:
    """Return Python's 64-bit hash of each. Two of a million are equal with probability 3e-8."""
    return np.fromiter(map(hash, strings.to_pylist()), np.int64, len(strings))


def _batches(
    path: Path, name: str, columns: Collection[str], sized_by: Collection[str] = ()
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the first row and the rows of each batch of a file, as `converted`.

    `sized_by` names the columns that decide the size of a batch. By default these are the columns
    that are read.
    """
    with readable(path), open_parquet(path) as file:
        names = file.schema_arrow.names
        names = [column for column in names if column in columns] or names
        first_row = 0
        rows = rows_at_once(file.metadata, sized_by or names, VALUES_AT_ONCE, BYTES_AT_ONCE)
        for batch in file.iter_batches(rows, columns=names):
            # The strings of a damaged file may not be UTF-8.
            batch.validate(full=True)
            yield first_row, converted(pa.Table.from_batches([batch]), IDS[name])
            first_row += len(batch)
