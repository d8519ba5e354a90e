"""Strict reader of the canonical log: Parquet tables of viewers, candidates, exposures, events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.contract.errors import TabrankError
from serve.features.field_types import TYPES
from serve.features.slots import ENTITIES, I64, IMPRESSION
from serve.features.surface import Surface
from serve.log.events import MAX_ONE_IN
from serve.log.join_coverage import check_joins
from serve.log.snapshots import Snapshot, replay_snapshots
from serve.log.table_reader import MAX_OLD_SHARE, TableReader
from serve.storage.conversion import IDS, converted
from serve.storage.parquet import data_files, read_rows, readable, unmerged

# Tables that may be missing in a log written by a service.
MAY_BE_EMPTY = ("viewers", "events")
ONLY_TESTS = 'every exposure of the log is test traffic (traffic = "test"); use a log with live traffic'
TABLES = ("viewers", "candidates", "exposures", "events")


@dataclass(frozen=True)
class Log:
    """Four tables with all columns of `canonical`, in its types; columns that a log lacks are null.

    `exposures.context` and the fields of viewers and candidates are those of the surface.

    A log of a service also has numbers: `seq` is the number of a record, and `seen_seq` that of the
    last record that a ranking had seen. A row of `viewers` or `candidates` then sets the fields
    that it has `stated`, or marks its id as `removed`.

    Exposures and events of viewers whom `training forget` erased are marked as `erased`. They still
    change the state of candidates, and count for nothing else. An exposure stands for `one_in`
    exposures, of which the others were not kept; it is 1 if the log does not state it.

    If the first records were deleted, the log can be replayed from `snapshots`, oldest first.
    """

    viewers: pa.Table
    candidates: pa.Table
    exposures: pa.Table
    events: pa.Table
    snapshots: tuple[Snapshot, ...] = ()

    @property
    def ends_ms(self) -> int:
        """Return the time of the last exposure or event, in ms."""
        return max(pc.max(table["ts_ms"]).as_py() or 0 for table in (self.exposures, self.events))

    @property
    def last_seq(self) -> int:
        """Return the last number that a service assigned; 0 in a log without numbers."""
        return max(pc.max(getattr(self, name)["seq"]).as_py() or 0 for name in TABLES)


def read_log(folder: Path, surface: Surface, *, test_traffic: bool = False) -> Log:
    """Read and validate a log; `test_traffic` keeps the exposures with `traffic = "test"` too.

    Raises:
        TabrankError: the log is invalid; the message names file, column, row (from 0) and remedy.
    """
    return _clean(_read_log(folder, surface), test_traffic)


def read_joined(folder: Path, surface: Surface, report: Callable[[str], None]) -> Log:
    """Read a log to train on; report what joins in it, and what it holds twice.

    Raises:
        TabrankError: the log is invalid, or nothing in it joins.
    """
    log = _read_log(folder, surface)
    # Most viewers and candidates of a truncated log are only in its snapshots.
    fields = dict.fromkeys(ENTITIES) if log.snapshots else surface.fields
    tables = {name: unerased(getattr(log, name)) for name in TABLES}
    check_joins(folder, tables, fields, report)
    return _clean(log, False)


def _read_log(folder: Path, surface: Surface) -> Log:
    tables = {name: canonical(name, reader, surface) for name, reader in _readers(folder).items()}
    # Read the snapshots after the tables: they cover records deleted while the tables were read.
    return Log(**tables, snapshots=replay_snapshots(folder))


def canonical(name: str, reader: TableReader, surface: Surface, *, is_served: bool = False) -> pa.Table:
    """Return the validated columns of the table `name` of a log of this surface.

    If a service wrote to it (`is_served`), the surface may have gained a field since. A field
    without a column is then null.

    Raises:
        TabrankError: the table is invalid; the message names file, column, row and remedy.
    """
    own_columns(name, reader)
    if name == "exposures":
        fields = [(name, TYPES[declared.type].arrow) for name, declared in surface.fields["context"].items()]
        reader.optional("context", pa.struct(fields)).optional("traffic").optional("stated")
        reader.optional("seq").optional("seen_seq").optional("pinned").flag("erased")
    elif name == "events":
        reader.optional("seq").flag("erased").one_of("kind", (*surface.events, IMPRESSION))
    else:
        # A service that accepted the rows has already judged the unit of each time.
        judged = "received_ms" in reader.raw.column_names
        for field, declared in surface.fields[ENTITIES[TABLES.index(name)]].items():
            may_lack = declared.request_time or is_served or judged
            read = reader.optional if may_lack else partial(reader.required, nullable=True)
            read(field, TYPES[declared.type].arrow)
            if declared.type == "time":
                reader.refuse_units(field, reader.columns[field], tolerated=1.0 if judged else MAX_OLD_SHARE)
        reader.optional("seq").optional("stated").optional("removed").optional("received_ms")
    return reader.table


def read_columns(folder: Path) -> dict[str, pa.Table]:
    """Return the four tables with all their columns; validate those that every log has."""
    readers = _readers(folder)
    for name, reader in readers.items():
        own_columns(name, reader)
    return {name: reader.raw if reader.raw.num_columns else reader.table for name, reader in readers.items()}


def _readers(folder: Path) -> dict[str, TableReader]:
    return {name: TableReader(*read_table(folder, name), name) for name in TABLES}


def own_columns(name: str, reader: TableReader) -> TableReader:
    """Read the columns that a table has whatever the surface of its log is."""
    if name in ("viewers", "candidates"):
        reader.required("id").optional("ts_ms")
        return reader.optional("ends_ms") if name == "candidates" else reader
    reader.required("request_id" if name == "exposures" else "id")
    reader.required("ts_ms").required("viewer", nullable=True)
    if name == "exposures":
        reader.required("candidates").no_repeats("candidates")
        return reader.number_of("one_in", MAX_ONE_IN)
    return reader.required("candidate").required("kind").optional("request_id").optional("value")


def unerased(table: pa.Table) -> pa.Table:
    """Return the rows of a table that are not erased."""
    # In viewers and candidates, a field may have this name. Its booleans are read as numbers.
    if "erased" not in table.column_names or table["erased"].type != pa.bool_():
        return table
    return table.filter(pc.invert(pc.fill_null(table["erased"], False)))


def _clean(log: Log, test_traffic: bool) -> Log:
    exposures = log.exposures
    if not test_traffic:
        exposures = exposures.filter(is_live(exposures))
        if not len(exposures):
            raise TabrankError(ONLY_TESTS)
    return replace(
        log,
        viewers=_unrepeated(log.viewers),
        candidates=_unrepeated(log.candidates),
        # An erased row that is there twice has two different ids, so drop repeated numbers too.
        exposures=once(_unrepeated(exposures), "request_id"),
        events=once(_unrepeated(log.events), "id"),
    )


def is_live(exposures: pa.Table) -> pa.ChunkedArray:
    """Return for each exposure True if its traffic is not `test`."""
    return pc.fill_null(pc.not_equal(exposures["traffic"], "test"), True)


def _unrepeated(table: pa.Table) -> pa.Table:
    """Drop rows with a repeated number, because segments that are being merged hold some twice."""
    numbers = filled(table, "seq")
    rows = numbers == 0
    rows[np.unique(numbers, return_index=True)[1]] = True
    return table if rows.all() else table.filter(pa.array(rows))


def filled(table: pa.Table, column: str) -> I64:
    """Return a column of whole numbers, 0 where it is null."""
    numbers: I64 = pc.fill_null(table[column], 0).to_numpy()
    return numbers


def once(table: pa.Table, column: str) -> pa.Table:
    """Return the first row of each value of a column, in order."""
    codes = table[column].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    first = np.sort(np.unique(codes, return_index=True)[1])
    return table if len(first) == len(table) else table.take(first)


def concat_logs(logs: Sequence[Log]) -> Log:
    """Concatenate logs; the snapshots are those of the first log that has any."""
    merged = {name: pa.concat_tables([getattr(log, name) for log in logs]) for name in TABLES}
    return Log(**merged, snapshots=next((log.snapshots for log in logs if log.snapshots), ()))


def read_table(folder: Path, name: str, columns: Sequence[str] | None = None) -> tuple[Path, pa.Table]:
    """Return the path of a table and its rows: a file, a folder of segments, or both concatenated.

    `columns` selects columns; those that do not exist are left out. Ids that are whole numbers,
    datetimes and booleans are converted, and the column's metadata says so
    (`serve.storage.conversion`). The table of viewers may be missing if no exposure names a viewer.

    Raises:
        TabrankError: the table is missing, not readable, or has no rows.
    """
    paths = table_paths(folder, name)
    if not paths:
        return folder / name, pa.table({})
    parts = [_read(path, name, columns) for path in paths]
    try:
        table = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise TabrankError(f"{folder}: {paths[0].name} and {name} do not fit together: {error}") from None
    if not len(table):
        raise no_rows(paths[0])
    return paths[0], table


def table_paths(folder: Path, name: str) -> list[Path]:
    """Return the file and the folder of a table, as far as they exist; some tables may be missing.

    Raises:
        TabrankError: the log or the table is missing.
    """
    if not folder.is_dir():
        raise TabrankError(f"{folder}: no such log; a log is a folder of Parquet with {', '.join(TABLES)}")
    paths = [path for path in (folder / f"{name}.parquet", folder / name) if path.exists()]
    if name == "viewers":
        # The folder of viewers is empty once all viewers were erased.
        paths = [path for path in paths if path.is_file() or any(path.glob("[!.]*"))]
    # The service that wrote the log may have received no such record, or no exposure names a
    # viewer.
    may_be_empty = name in MAY_BE_EMPTY and (folder / "exposures").is_dir()
    if not (paths or may_be_empty or _is_anonymous(folder, name)):
        raise TabrankError(f"{folder}: {name}.parquet is missing; a log needs {', '.join(TABLES)}")
    return paths


def no_rows(path: Path) -> TabrankError:
    """Return the refusal of a table without rows."""
    return TabrankError(f"{path}: has no rows; a log needs at least one row in each table")


@unmerged
def _read(path: Path, table: str, columns: Sequence[str] | None) -> pa.Table:
    tables = []
    for name in data_files(path):
        # Read the segments one by one. A dataset would use the columns of the first segment for
        # all, but the surface may have gained a field since.
        with readable(name):
            tables.append(read_rows(name, columns))
            tables[-1].validate(full=True)
            tables[-1] = converted(tables[-1], IDS[table])
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def _is_anonymous(folder: Path, name: str) -> bool:
    """Return True if this is the table of viewers, and no exposure names a viewer."""
    if name != "viewers" or not (folder / "exposures.parquet").exists():
        return False
    _, exposures = read_table(folder, "exposures", ("viewer",))
    return bool(exposures.num_columns and exposures["viewer"].null_count == len(exposures))
