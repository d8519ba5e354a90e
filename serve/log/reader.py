"""Strict reader of the canonical log: Parquet tables of viewers, candidates, exposures, events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from serve.contract.errors import TabrankError
from serve.contract.rankings import MAX_MS
from serve.features.slots import IMPRESSION
from serve.features.surface import FieldType, Surface
from serve.log.snapshots import Snapshot, replay_snapshots

# Attempts to read a table whose segments are merged meanwhile, before it counts as unreadable.
READS = 10
# Exceptions that pyarrow raises for a damaged file.
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
# Tables that may be missing in a log written by a service.
MAY_BE_EMPTY = ("viewers", "events")
TABLES = ("viewers", "candidates", "exposures", "events")
ARROW: Mapping[FieldType, pa.DataType] = {
    "number": pa.float64(),
    "category": pa.string(),
    "set": pa.list_(pa.string()),
    "time": pa.int64(),
}
# Types that are read as each type, besides null.
CASTABLE = {
    pa.string(): (pa.types.is_string, pa.types.is_large_string),
    pa.int64(): (pa.types.is_integer,),
    pa.float64(): (pa.types.is_floating, pa.types.is_integer),
    pa.bool_(): (pa.types.is_boolean,),
}
WANTED = {
    pa.string(): "strings",
    pa.int64(): "whole numbers (milliseconds since 1970)",
    pa.float64(): "numbers",
    pa.list_(pa.string()): "lists of strings",
    pa.bool_(): "true or false",
}


@dataclass(frozen=True)
class Log:
    """Four tables in canonical types, with counts of repeated, unknown and test records.

    `exposures.context` and the fields of viewers and candidates are those of the surface. A log of
    a service also has numbers: `seq` of each record, and `seen_seq` of the last record that a
    ranking had seen. A row of `viewers` or `candidates` then sets the fields that it has `stated`,
    or marks its id as `removed`. If the first records were deleted, the log can be replayed from
    `snapshots`, oldest first.
    """

    viewers: pa.Table
    candidates: pa.Table
    exposures: pa.Table
    events: pa.Table
    counts: dict[str, int] = field(default_factory=dict)
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
    """Read and validate a log; exposures with `traffic = "test"` are included with `test_traffic`.

    Raises:
        TabrankError: the log is invalid; the message names file, column, row (from 0) and remedy.
    """
    fields = surface.fields
    viewers = _Reader(folder, "viewers").required("id", pa.string()).optional("ts_ms", pa.int64())
    candidates = _Reader(folder, "candidates").required("id", pa.string()).optional("ts_ms", pa.int64())
    candidates.optional("ends_ms", pa.int64())
    for reader, owner in ((viewers, "viewer"), (candidates, "candidate")):
        for name, declared in fields[owner].items():
            reader.required(name, ARROW[declared.type], nullable=True)
        reader.optional("seq", pa.int64()).optional("stated", pa.list_(pa.string()))
        reader.optional("removed", pa.bool_()).optional("received_ms", pa.int64())
    exposures = _Reader(folder, "exposures").required("request_id", pa.string()).required("ts_ms", pa.int64())
    exposures.required("viewer", pa.string(), nullable=True).required("candidates", pa.list_(pa.string()))
    context = pa.struct([(name, ARROW[declared.type]) for name, declared in fields["context"].items()])
    exposures.optional("context", context).optional("traffic", pa.string()).optional("stated", pa.string())
    exposures.optional("seq", pa.int64()).optional("seen_seq", pa.int64())
    events = _Reader(folder, "events").required("id", pa.string()).required("ts_ms", pa.int64())
    events.required("viewer", pa.string(), nullable=True).required("candidate", pa.string())
    events.required("kind", pa.string()).optional("request_id", pa.string()).optional("seq", pa.int64())
    exposures.no_repeats("candidates")
    events.one_of("kind", (*surface.events, IMPRESSION))
    log = Log(viewers.table, candidates.table, exposures.table, events.table)
    # Read the snapshots after the tables: they cover records deleted while the tables were read.
    return _clean(replace(log, snapshots=replay_snapshots(folder)), test_traffic)


def _clean(log: Log, test_traffic: bool) -> Log:
    counts = {}
    exposures = log.exposures
    if not test_traffic:
        live = pc.fill_null(pc.not_equal(exposures["traffic"], "test"), True)
        exposures = exposures.filter(live)
        if not len(exposures):
            raise TabrankError(
                'every exposure of the log is test traffic (traffic = "test"); use a log with live traffic'
            )
    counts["test_exposures"] = len(log.exposures) - len(exposures)
    exposures, counts["repeated_exposures"] = _once(exposures, "request_id")
    events, counts["repeated_events"] = _once(log.events, "id")
    viewers, candidates = _unrepeated(log.viewers), _unrepeated(log.candidates)
    counts["repeated_rows"] = len(log.viewers) + len(log.candidates) - len(viewers) - len(candidates)
    shown = pc.list_flatten(exposures["candidates"])
    counts["unknown_candidates"] = int(pc.sum(pc.invert(pc.is_in(shown, log.candidates["id"]))).as_py() or 0)
    unknown = pc.invert(pc.is_in(exposures["viewer"], log.viewers["id"]))
    counts["unknown_viewers"] = int(pc.sum(unknown).as_py() or 0)
    return replace(
        log, viewers=viewers, candidates=candidates, exposures=exposures, events=events, counts=counts
    )


def _unrepeated(table: pa.Table) -> pa.Table:
    """Drop rows with a repeated number: segments being merged hold some records twice."""
    numbers = pc.fill_null(table["seq"], 0).to_numpy()
    given = np.flatnonzero(numbers)
    rows = np.ones(len(table), bool)
    rows[given] = False
    rows[given[np.unique(numbers[given], return_index=True)[1]]] = True
    return table if rows.all() else table.filter(pa.array(rows))


def _once(table: pa.Table, column: str) -> tuple[pa.Table, int]:
    """Return the first row of each value of a column, in order, and how many rows that drops."""
    codes = table[column].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    first = np.sort(np.unique(codes, return_index=True)[1])
    num_repeated = len(table) - len(first)
    return table.take(first) if num_repeated else table, num_repeated


def concat_logs(logs: Iterable[Log]) -> Log:
    """Concatenate logs; the snapshots are those of the first log that has any."""
    logs = list(logs)
    merged = {name: pa.concat_tables([getattr(log, name) for log in logs]) for name in TABLES}
    return Log(**merged, snapshots=next((log.snapshots for log in logs if log.snapshots), ()))


def read_table(folder: Path, name: str, columns: Sequence[str] | None = None) -> tuple[Path, pa.Table]:
    """Return the path of a table and its rows: a file, a folder of segments, or both concatenated.

    `columns` selects columns; those that do not exist are left out.

    Raises:
        TabrankError: the table is missing, not readable, or has no rows.
    """
    if not folder.is_dir():
        raise TabrankError(f"{folder}: no such log; a log is a folder of Parquet with {', '.join(TABLES)}")
    paths = [path for path in (folder / f"{name}.parquet", folder / name) if path.exists()]
    if not paths:
        if name in MAY_BE_EMPTY and (folder / "exposures").is_dir():
            # The service that wrote the log received no record of this kind.
            return folder / name, pa.table({})
        raise TabrankError(f"{folder}: {name}.parquet is missing; a log needs {', '.join(TABLES)}")
    parts = []
    for path in paths:
        try:
            parts.append(_read(path, columns))
        except UNREADABLE as error:
            raise TabrankError(f"{path}: not readable as Parquet: {str(error).splitlines()[0]}") from None
    try:
        table = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise TabrankError(f"{folder}: {paths[0].name} and {name} do not fit together: {error}") from None
    if not len(table):
        raise TabrankError(f"{paths[0]}: has no rows; a log needs at least one row in each table")
    return paths[0], table


def _read(path: Path, columns: Sequence[str] | None) -> pa.Table:
    """Read a file or a folder of segments; retry if segments are merged or deleted meanwhile."""
    for _ in range(READS - 1):
        try:
            return _read_once(path, columns)
        except UNREADABLE:
            continue
    return _read_once(path, columns)


def _read_once(path: Path, columns: Sequence[str] | None) -> pa.Table:
    tables = []
    for name in ds.dataset(path, format="parquet", exclude_invalid_files=False).files:
        # Read the segments one by one: a dataset uses the columns of the first segment for all, but
        # the surface may have gained a field since.
        with pq.ParquetFile(name) as file:
            schema = file.schema_arrow
            if columns is not None:
                schema = pa.schema([schema.field(column) for column in columns if column in schema.names])
            # Read in batches: pyarrow refuses to read lists of more than 2 GiB of strings at once.
            tables.append(pa.Table.from_batches(file.iter_batches(columns=schema.names), schema))
            # The strings of a damaged file may not be UTF-8.
            tables[-1].validate(full=True)
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


class _Reader:
    """Reader of one table that validates and casts one column at a time."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.raw = read_table(folder, name)
        self.columns: dict[str, pa.ChunkedArray] = {}

    @property
    def table(self) -> pa.Table:
        """Return the columns read so far."""
        return pa.table(self.columns)

    def required(self, column: str, wanted: pa.DataType, *, nullable: bool = False) -> _Reader:
        """Read a required column; nulls are refused unless `nullable`."""
        if not self.raw.num_columns:
            self.columns[column] = pa.chunked_array([], wanted)
            return self
        if column not in self.raw.column_names:
            raise TabrankError(f"{self.path}: the column {column!r} is missing; it holds {_words(wanted)}")
        values = self._cast(column, self.raw[column], wanted)
        if not nullable:
            self._refuse(column, pc.is_null(values), "is empty; every row needs a value")
        if wanted == pa.string():
            self._refuse(column, pc.equal(values, ""), "is an empty string; use null where there is none")
        if wanted == pa.list_(pa.string()):
            lists = values.combine_chunks()
            bad = pc.fill_null(pc.equal(pc.list_flatten(lists), ""), True)
            self._refuse(column, bad, "a list holds null or an empty string", lists)
        if wanted == pa.float64():
            self._refuse(column, pc.is_inf(values), "is infinite; use null where there is no number")
        if column == "ts_ms":
            bad = pc.or_(pc.less(values, 0), pc.greater(values, MAX_MS))
            self._refuse(column, bad, f"is not from 0 to {MAX_MS}, milliseconds since 1970")
        self.columns[column] = values
        return self

    def optional(self, column: str, wanted: pa.DataType) -> _Reader:
        """Read a column if it exists; otherwise fill it with nulls."""
        if column in self.raw.column_names or not self.raw.num_columns:
            return self.required(column, wanted, nullable=True)
        self.columns[column] = pa.chunked_array([pa.nulls(self.raw.num_rows, wanted)])
        return self

    def one_of(self, column: str, known: Iterable[str]) -> None:
        """Refuse a row whose value is not among the known ones."""
        names = sorted(set(known))
        bad = pc.invert(pc.is_in(self.columns[column], pa.array(names)))
        self._refuse(column, bad, f"is not an event of the surface; its events are {', '.join(names)}")

    def no_repeats(self, column: str) -> None:
        """Refuse a list that holds a value twice."""
        lists = self.columns[column].combine_chunks()
        codes = (
            pc.list_flatten(lists).dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
        )
        rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
        pairs = rows * (codes.max(initial=0) + 1) + codes
        order = np.argsort(pairs, kind="stable")
        twice = order[1:][pairs[order][1:] == pairs[order][:-1]]
        if len(twice):
            raise TabrankError(
                f"{self.path}: column {column!r}, row {rows[twice].min()}: "
                "holds a candidate twice; each may be shown once in a ranking"
            )

    def _cast(self, column: str, values: Any, wanted: pa.DataType) -> Any:
        if pa.types.is_struct(wanted):
            return self._context(column, values.combine_chunks(), wanted)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if not _fits(values.type, wanted):
            raise TabrankError(
                f"{self.path}: column {column!r} holds {values.type}; it must hold {_words(wanted)}"
            )
        try:
            return values.cast(wanted)
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise TabrankError(
                f"{self.path}: column {column!r} cannot be read as {_words(wanted)}: {reason}"
            ) from None

    def _context(self, column: str, values: Any, wanted: pa.StructType) -> pa.ChunkedArray:
        """Return structs of all declared fields, null where the column has no such field."""
        is_null = pa.types.is_null(values.type)
        if not (is_null or pa.types.is_struct(values.type)):
            raise TabrankError(f"{self.path}: column {column!r} holds {values.type}; it must hold a struct")
        children = []
        for part in wanted:
            index = -1 if is_null else values.type.get_field_index(part.name)
            child = pa.nulls(len(values), part.type) if index < 0 else pc.struct_field(values, index)
            children.append(self._cast(f"{column}.{part.name}", child, part.type))
        if not children:
            return pa.chunked_array([pa.nulls(len(values), wanted)])
        return pa.chunked_array([pa.StructArray.from_arrays(children, fields=list(wanted))])

    def _refuse(self, column: str, bad: Any, why: str, lists: Any = None) -> None:
        """Refuse the first bad value, or the first bad member of the `lists`."""
        at = pc.index(pc.fill_null(bad, False), True).as_py()
        if at >= 0:
            row = at if lists is None else pc.list_parent_indices(lists)[at].as_py()
            raise TabrankError(f"{self.path}: column {column!r}, row {row}: {why}")


def _fits(given: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_null(given):
        return True
    if wanted in CASTABLE:
        return any(is_kind(given) for is_kind in CASTABLE[wanted])
    is_list = pa.types.is_list(given) or pa.types.is_large_list(given)
    return is_list and _fits(given.value_type, pa.string())


def _words(wanted: pa.DataType) -> str:
    return WANTED.get(wanted, str(wanted))
