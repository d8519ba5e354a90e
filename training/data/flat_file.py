"""Read a flat file: its rows, and the ids, times and positions that they have in a log.

The options of `import csv` name its columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve.contract.errors import TabrankError
from serve.contract.rankings import MAX_ID_CHARACTERS
from serve.contract.validation import OTHER_UNITS, RECENT_MS, spelled
from training.data.csv_text import Dialect, read_csv
from training.data.numbers import Reading, read_numbers

WRONG_TIME = "is not between 1985 and 2128 in the unit that most rows use; correct it or drop the row"
# Each option that names ids, and the column of the log that holds these ids.
IDS = {"candidate": "candidate", "viewer": "viewer", "slate": "request_id"}


@dataclass(frozen=True)
class FlatColumns:
    """The names of a flat file's columns, and how its rows are grouped into slates.

    The columns `events` hold 1, true, yes or the kind of event where the viewer acted. Without
    `slate`, a slate is the rows of one viewer at one time or, with `window_ms`, within that many ms
    of the slate's first row.
    """

    candidate: str
    time: str
    events: tuple[str, ...]
    viewer: str | None = None
    slate: str | None = None
    position: str | None = None
    window_ms: float = 0.0
    # Columns whose numbers are codes of categories.
    categories: tuple[str, ...] = ()
    # The column of the amount of each kind of event that has one.
    amounts: Mapping[str, str] = field(default_factory=dict)
    # The kind of ids that each column is given to, as a key of `training.data.fates.OWNERS`.
    owners: Mapping[str, str] = field(default_factory=dict)
    dialect: Dialect = field(default_factory=Dialect)

    def __post_init__(self) -> None:
        if self.window_ms and (self.slate or not self.viewer):
            raise TabrankError("--window: groups the rows of a viewer; give --viewer too, and not --slate")

    @property
    def rule(self) -> str:
        """Return in words how rows are grouped into slates."""
        whose = f"of the same {self.viewer} " if self.viewer else ""
        when = f"within {spelled(self.window_ms / 1e3)}, by" if self.window_ms else "at the same"
        return f"the rows with the same {self.slate}" if self.slate else f"the rows {whose}{when} {self.time}"

    @property
    def given(self) -> list[tuple[str, str]]:
        """Return (option, name of the column) for each column that an option names."""
        one = [(option, getattr(self, option)) for option in (*IDS, "time", "position")]
        more = [("event", name) for name in self.events] + [("value", name) for name in self.amounts.values()]
        return [pair for pair in one if pair[1]] + more


@dataclass
class FlatFile:
    """A flat file as it was read, with rows numbered from 0.

    Attributes:
        rows: the columns of the file.
        log: the ids of each row (`candidate`, `viewer`, `request_id`), its `ts_ms` and `position`.
        separator: the mark between the columns of a CSV; empty for Parquet.
        notes: how the file was read, if there was a choice.
    """

    path: Path
    columns: FlatColumns
    rows: pd.DataFrame
    log: pd.DataFrame
    separator: str
    notes: list[str]
    _readings: dict[str, Reading] = field(default_factory=dict)

    @property
    def unnamed(self) -> list[str]:
        """Return the columns that no option names."""
        named = {name for _, name in self.columns.given}
        return [name for name in map(str, self.rows) if name not in named]

    def reading(self, name: str) -> Reading:
        """Return a column as numbers if it is text that holds numbers, and else as it is."""
        if name not in self._readings:
            values = self.rows[name]
            is_code = name in self.columns.categories
            read = Reading(values) if is_code else read_numbers(values, self.columns.dialect.decimal)
            self._readings[name] = read
        return self._readings[name]


def read_flat(source: Path, columns: FlatColumns) -> FlatFile:
    """Read a CSV or Parquet file that has these columns.

    Raises:
        TabrankError: the file cannot be read, a column is missing, or one holds wrong values.
    """
    table, separator, notes = _read(source, columns)
    table, known = _plain(source, table), table.column_names
    nobody = pa.nulls(len(table), pa.string())
    log = {"viewer": nobody, "request_id": nobody, "position": np.arange(len(table))}
    for option, name in (*columns.given, *(("category", name) for name in columns.categories)):
        where = f"{source}: --{option}: {name!r}"
        if name not in known:
            raise TabrankError(f"{where} is not a column of the file: {', '.join(map(repr, known))}")
        values = table[name]
        if option in ("candidate", "time", "slate"):
            _refuse(where, pc.is_null(values, nan_is_null=True), "is empty; every row needs a value")
        if option in IDS:
            log[IDS[option]] = _ids(where, values)
        elif option == "time":
            log["ts_ms"], has_zone = _times(where, values, columns.dialect.time_format)
            if not has_zone:
                notes.append(f"note: the times {name!r} of {source} name no zone: they are read as UTC")
        elif option == "position":
            log[option] = _positions(where, values, columns.dialect.decimal)
        elif option == "category":
            table = table.set_column(known.index(name), name, _ids(where, values))
    rows, frame = (part.to_pandas(types_mapper=pd.ArrowDtype) for part in (table, pa.table(log)))
    # Loops over slates read Python's strings faster than Arrow's.
    frame["candidate"] = frame["candidate"].astype(object)
    return FlatFile(source, columns, rows, frame, separator, notes)


def _read(source: Path, columns: FlatColumns) -> tuple[pa.Table, str, list[str]]:
    """Return the table of a file, the separator of its columns, and notes on how it was read."""
    try:
        if source.suffix == ".parquet":
            return pq.read_table(source), "", []
        as_text = {*IDS, "time"} if columns.dialect.time_format else {*IDS}
        codes = [name for option, name in columns.given if option in as_text] + [*columns.categories]
        return read_csv(source, columns.dialect, codes, [columns.viewer or "", *columns.categories])
    except FileNotFoundError:
        raise TabrankError(f"{source}: no such file") from None
    except UnicodeDecodeError as error:
        raise TabrankError(f"{source}: --encoding: {error}") from None
    except (pa.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        remedy = "; check the separator, --delimiter" * ("columns, got" in why)
        raise TabrankError(
            f"{source}: cannot be read as Parquet, or as CSV with one separator: {why}{remedy}"
        ) from None


def _plain(source: Path, table: pa.Table) -> pa.Table:
    """Return the table with plain columns instead of dictionaries, and with NaN as missing."""
    if not len(table):
        raise TabrankError(f"{source}: has no rows; a log needs at least one")
    if twice := {name for name in table.column_names if table.column_names.count(name) > 1}:
        raise TabrankError(f"{source}: has two columns {min(twice)!r}; rename one of them")
    kinds = [(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in table.schema]
    table = table.cast(pa.schema(kinds))
    for place, name in enumerate(table.column_names):
        if pa.types.is_floating(table[name].type):
            numbers = table[name].cast(pa.float64())
            why = "is infinite; leave the cell empty where there is no number"
            _refuse(f"{source}: {name!r}", pc.is_inf(numbers), why)
            table = table.set_column(place, name, pc.if_else(pc.is_nan(numbers), None, numbers))
    return table


def _refuse(where: str, bad: pa.ChunkedArray, why: str) -> None:
    """Raise an error for the first bad row, if there is one."""
    if (row := pc.index(bad, True).as_py()) >= 0:
        raise TabrankError(f"{where}, row {row}: {why}")


def _misfit(where: str, values: pa.ChunkedArray, what: str) -> TabrankError:
    return TabrankError(f"{where} holds {values.type}, such as {values[0]}; {what}")


def _ids(where: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        # Pandas writes a column of whole numbers with missing values as floats, such as 7.0.
        whole = values.cast(pa.int64()) if pa.types.is_floating(values.type) else values
        ids = whole.cast(pa.string())
        if pc.all(pc.match_substring_regex(ids, r"^-?\d+\.0$"), min_count=1).as_py():
            ids = pc.replace_substring_regex(ids, r"\.0$", "")
        why = "is a rounded number, whose last digits are lost; export ids as text"
        _refuse(where, pc.match_substring_regex(ids, r"^\d[.,]\d+[eE]\+\d+$"), why)
        _refuse(where, pc.equal(ids, ""), "is an empty string; use null where there is none")
        why = f"an id has over {MAX_ID_CHARACTERS} characters, the most that a request allows; shorten it"
        _refuse(where, pc.greater(pc.utf8_length(ids), MAX_ID_CHARACTERS), why)
        return ids
    except pa.ArrowException:
        raise _misfit(where, values, "an id must be a string or a whole number") from None


def _positions(where: str, values: pa.ChunkedArray, decimal: str | None) -> pa.ChunkedArray:
    """Return positions, which a column of text may hold too."""
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return values
    read = pd.to_numeric(
        read_numbers(values.to_pandas(types_mapper=pd.ArrowDtype), decimal).values, errors="coerce"
    )
    _refuse(where, pa.chunked_array([read.isna()]), "is no number")
    return pa.chunked_array([pa.array(read)])


def _times(where: str, values: pa.ChunkedArray, form: str | None) -> tuple[Any, bool]:
    """Return times in ms since 1970, and whether they say of which zone they are.

    They keep fractions, as several people may look in one ms.
    """
    if form:
        try:
            read = pd.to_datetime(
                values.cast(pa.string()).to_pandas(), format=form, errors="coerce", utc=True
            )
        except ValueError as error:
            raise TabrankError(f"--time-format {form}: {error}") from None
        _refuse(where, pa.chunked_array([read.isna()]), f"is not written as --time-format {form}")
        found, _ = _times(where, pa.chunked_array([pa.array(read)]), None)
        return found, "%z" in form.lower()
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        times = np.asarray(values.cast(pa.timestamp("us"), safe=False).cast(pa.int64())) / 1e3
        _refuse(where, pa.chunked_array([(times < RECENT_MS) | (times >= 10 * RECENT_MS)]), WRONG_TIME)
        return times, pa.types.is_timestamp(values.type) and values.type.tz is not None
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        numbers = np.asarray(values, float)
        for first in (RECENT_MS, *(first for first, _ in OTHER_UNITS)):
            if first <= np.median(numbers) < 10 * first:
                bad = pc.or_(pc.less(values, first), pc.greater_equal(values, 10 * first))
                _refuse(where, bad, WRONG_TIME)
                return numbers * (RECENT_MS / first), True
    what = (
        "a time must be a datetime, as 2026-01-31T12:00:00Z, or a number of s, ms, µs or ns since 1970; name another "
        "form, as --time-format '%d.%m.%Y %H:%M'"
    )
    raise _misfit(where, values, what)
