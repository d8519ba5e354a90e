"""Import a flat file, which has one row for each candidate that was shown, as a log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve.contract.errors import TabrankError
from serve.contract.rankings import MAX_ID_CHARACTERS
from serve.contract.validation import OTHER_UNITS, RECENT_MS, one_of, refuse_existing
from serve.features.slots import ENTITIES
from serve.log.join_coverage import MIN_JOIN, check_joins
from serve.log.writer import write_log
from serve.storage.conversion import converted
from serve.storage.parquet import refuse_oversize
from training.data.csv_text import read_csv
from training.data.doubts import doubts
from training.data.fates import OWNERS, STATED, Fate, Ids, fates
from training.data.flat_columns import IDS, FlatColumns
from training.data.flat_events import amounts_to_ask, events_of
from training.data.numbers import may_be_thousands, read_numbers
from training.terminal import print_progress

WRONG_TIME = "is not between 1985 and 2128 in the unit that most rows use; correct it or drop the row"
# The parts of a column's fate that are reported.
TOLD = ("column", "owner", "why", "disagreement")
NOT_READ = "no field is read from --events; name an amount with --value, or put the column into --source"
# With lists of their own, so large a share of the viewers tells their fields from the context.
ENOUGH_AGAIN = 0.1
# If candidates are shown this often on average, a model can learn each one by its id.
OFTEN = 1_000
# Cells that look like lists: JSON, or several values with a separator.
LIST = r"^\s*\[.*\]\s*$|[^|;][|;][^|;]"
# Stands for "valid at all times" until it is written as null.
ALWAYS_MS = -1
# Convert this many rows to JSON at once, to bound the memory for Python's objects.
ROWS_AT_ONCE = 65_536
# A row's viewer, its time, the end of its window, and its number.
Row = tuple[str, float, float, int]


def import_flat(
    source: Path, out: Path, columns: FlatColumns, events: Path | None = None, *, is_sure: bool = True
) -> dict[str, Any]:
    """Write the log of a flat file to `out`, and return what became of its rows and columns.

    If less than MIN_JOIN of the rows of the file `events` belong to a slate, nothing is written and
    the result's `joined` is False. With `is_sure`, the log is written all the same.

    Raises:
        TabrankError: `out` exists, or for a reason that `flat_tables` gives.
    """
    refuse_existing(out)
    tables, found = flat_tables(source, columns, events)
    shares = check_joins(events, tables, dict.fromkeys(ENTITIES), print_progress) if events else {}
    is_joined = is_sure or shares.get("events", 1.0) >= MIN_JOIN
    if is_joined:
        # If no viewer is known, the log has no table of viewers.
        write_log(out, {name: table for name, table in tables.items() if len(table)})
    # Count ids and not rows, as an id may have several rows.
    counts = {name: pc.count_distinct(table[0]).as_py() for name, table in tables.items()}
    return counts | found | {"joined": is_joined}


def flat_tables(
    source: Path, columns: FlatColumns, acts: Path | None = None
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Convert a CSV or Parquet file to a log's tables, and say what became of rows and columns.

    `training.data.fates` decides what becomes of a column that no option names. A candidate that
    occurs twice in a slate is shown once, with at most one event of each kind. The events may be in
    a file of their own, `acts`, whose columns have the same names.

    Raises:
        TabrankError: a file cannot be read, a column is missing, or a column holds wrong values.
    """
    rows, log, separator, notes = _read(source, replace(columns, events=(), amounts={}) if acts else columns)
    if not columns.slate:
        log["request_id"] = _slates(log, columns.window_ms)
    log["at_ms"] = log.groupby("request_id")["ts_ms"].transform("min").astype("int64")
    # Sort by position, or keep the order of the file.
    shown = log.sort_values("position", kind="stable").drop_duplicates(["request_id", "candidate"])
    slates = shown.groupby("request_id", sort=False)
    if slates["viewer"].nunique(dropna=False).max() > 1:
        raise TabrankError(f"{source}: --slate: {columns.slate!r} has one value in rows of two viewers")
    exposures = slates.agg(ts_ms=("at_ms", "min"), viewer=("viewer", "first"), candidates=("candidate", list))
    exposures = exposures.sort_values("ts_ms", kind="stable")
    # An event in another file that names no slate belongs to its viewer's latest slate.
    act_rows, act_log = rows, log
    if acts:
        act_rows, act_log, of_acts, more = _read(
            acts, replace(columns, position=None, categories=(), owners={})
        )
        notes, separator = notes + more, separator + of_acts
    events, amounts = events_of(acts or source, act_rows, act_log, columns)
    # Of a repeated row, keep the one that has the amount.
    ordered = events.sort_values("value", kind="stable") if columns.amounts else events
    is_again = ordered.duplicated(["request_id", "candidate", "kind"]).reindex(events.index) & (acts is None)
    events = events[~is_again]
    asked = list(amounts_to_ask(act_rows, columns))
    given = [name for _, name in columns.given]
    unread = [
        Fate(f"{acts}: {name}", values, "", f"{values.notna().mean():.0%} have one; {NOT_READ}")
        for name, values in (act_rows.items() if acts else ())
        if name not in given
    ]
    apart = {*columns.events, *columns.amounts.values()} if acts else set()
    rows = rows.drop(columns=[name for name in given if name not in apart], errors="ignore")
    for name in columns.owners:
        one_of(name, [*map(str, rows)], "--field", "column")
    partner = {"candidate": "viewer", "viewer": "request_id", "request_id": "candidate"}
    ids = {own: Ids(log[own], log[other], log["at_ms"]) for own, other in partner.items()}
    decimal = columns.dialect.decimal
    found = list(fates(rows, log, ids, columns.categories, owners=columns.owners, decimal=decimal))
    stated = {fate.column: fate.values for fate in found if fate.owner == STATED}
    if stated:
        exposures["stated"] = _stated(shown, pd.DataFrame(stated))
    own = {key: _fields(ids[key], log, [fate for fate in found if fate.owner == OWNERS[key]]) for key in ids}
    tables = {
        "viewers": _table(own["viewer"], "id"),
        "candidates": _table(own["candidate"], "id"),
        "exposures": _table(exposures, "request_id"),
        "events": _table(events, "id"),
    }
    if len(own["request_id"].columns):
        context = _table(own["request_id"].loc[exposures.index], "id").drop_columns("id")
        tables["exposures"] = tables["exposures"].append_column("context", context.to_struct_array())
    missing = {fate.column: float(fate.values.isna().mean()) for fate in found if fate.owner}
    kinds = Counter(events["kind"])
    # Events in another file are matched to candidates only later, by the command `surface`.
    warnings = [*notes, *amounts, *doubts(tables["exposures"], {} if acts else kinds, missing), *asked]
    paid = {name: act_rows[name] for name in columns.amounts.values()}
    warnings += _warnings(found, paid, slates["viewer"].first(), columns, is_foreign=";" in separator)
    warnings += [
        f"warning: most cells of {fate.column!r} look like lists, and are read as single strings; for a set, give "
        "a .parquet file in which this column holds lists of strings"
        for fate in found
        if pd.api.types.is_string_dtype(fate.values.dtype)
        and 2 * fate.values.str.contains(LIST).sum() > fate.values.count()
    ]
    num_ids = len(ids["candidate"].names)
    if len(shown) >= OFTEN * num_ids and not (own["candidate"].nunique() == num_ids).any():
        warnings.append(
            f"note: the {num_ids:,} candidates are shown {len(shown) / num_ids:,.0f} times each, but ids are no "
            f"features; a model learns more about each one if you add a column that repeats {columns.candidate!r}"
        )
    return tables, {
        "kinds": sorted(kinds),
        "slates": columns.rule,
        "from": str(pd.Timestamp(int(exposures["ts_ms"].min()), unit="ms")),
        "to": str(pd.Timestamp(int(exposures["ts_ms"].max()), unit="ms")),
        "mean_candidates": len(shown) / len(exposures),
        "repeated_rows": len(log) - len(shown),
        "merged_events": int(is_again.sum()),
        "columns": [{name: getattr(fate, name) for name in TOLD} for fate in (*found, *unread)],
        "warnings": warnings,
    }


def _fields(ids: Ids, log: pd.DataFrame, fates: list[Fate]) -> pd.DataFrame:
    """Return the fields of each id: one row or, if a field is dated, a row for each change."""
    static, dated = pd.DataFrame(index=ids.names), []
    for fate in fates:
        rows = fate.rows
        of, values = ids.names[ids.number[rows]], fate.values.iloc[rows]
        if not fate.is_dated:
            static[fate.column] = values.set_axis(of)
            continue
        # A ranking sees only what was valid before its own time, so a value begins 1 ms before its
        # row. The first value of an id is valid at all earlier times too.
        is_first = ~pd.Series(of).duplicated()
        since_ms = np.where(is_first, ALWAYS_MS, log["at_ms"].to_numpy()[rows] - 1)
        changes = values.set_axis(pd.MultiIndex.from_arrays([of, since_ms], names=["id", "ts_ms"]))
        dated.append(changes[~changes.index.duplicated(keep="last")].rename(fate.column))
    if not dated:
        return static
    # Each id has a row for each of its changes, and one that is valid at all times.
    always = pd.MultiIndex.from_product([ids.names, [ALWAYS_MS]], names=["id", "ts_ms"])
    every = pd.concat([pd.DataFrame(index=always), *dated], axis=1).sort_index()
    changed: pd.DataFrame = every.groupby(level="id").ffill().reset_index("ts_ms").join(static)
    times = changed["ts_ms"].astype("Int64")
    return changed.assign(ts_ms=times.mask(times == ALWAYS_MS))


def _stated(shown: pd.DataFrame, values: pd.DataFrame) -> pd.Series[str]:
    """Return for each slate, as JSON, the fields that its request states of each candidate."""
    table = converted(pa.Table.from_pandas(values.loc[shown.index], preserve_index=False), ())
    fields = (row for batch in table.to_batches(ROWS_AT_ONCE) for row in batch.to_pylist())
    parts = [
        msgspec.json.encode({name: row})[1:-1].decode()
        for name, row in zip(shown["candidate"], fields, strict=True)
    ]
    return "{" + pd.Series(parts).groupby(shown["request_id"].array, sort=False).agg(",".join) + "}"


def _table(frame: pd.DataFrame, index: str) -> pa.Table:
    frame = frame.rename_axis(index).reset_index()
    return pa.Table.from_pandas(frame, preserve_index=False)


def _read(source: Path, columns: FlatColumns) -> tuple[pd.DataFrame, pd.DataFrame, str, list[str]]:
    """Read a file. Return its rows; a frame with ids, time and position; separator; and notes."""
    separator, notes = "", list[str]()
    try:
        if source.suffix == ".parquet":
            refuse_oversize(source)
            table = pq.read_table(source)
        else:
            as_text = {*IDS, "time"} if columns.dialect.time_format else {*IDS}
            codes = [name for option, name in columns.given if option in as_text] + [*columns.categories]
            nullable = [columns.viewer or "", *columns.categories]
            table, separator, notes = read_csv(source, columns.dialect, codes, nullable)
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
    if not len(table):
        raise TabrankError(f"{source}: has no rows; a log needs at least one")
    kinds = [(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in table.schema]
    table, known = table.cast(pa.schema(kinds)), table.column_names
    if twice := {name for name in known if known.count(name) > 1}:
        raise TabrankError(f"{source}: has two columns {min(twice)!r}; rename one of them")
    for place, name in enumerate(known):
        if pa.types.is_floating(table[name].type):
            numbers = table[name].cast(pa.float64())
            why = "is infinite; leave the cell empty where there is no number"
            _refuse(f"{source}: {name!r}", pc.is_inf(numbers), why)
            table = table.set_column(place, name, pc.if_else(pc.is_nan(numbers), None, numbers))
    nobody = pa.nulls(len(table), pa.string())
    log = {"viewer": nobody, "request_id": nobody, "position": np.arange(len(table))}
    for option, name in (*columns.given, *(("category", name) for name in columns.categories)):
        where = f"{source}: --{option}: {name!r}"
        if name not in known:
            raise TabrankError(
                f"{where} is not a column of the file, which has {', '.join(map(repr, known))}"
            )
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
            log[option] = _numbers(where, values, columns.dialect.decimal)
        elif option == "category":
            table = table.set_column(known.index(name), name, _ids(where, values))
    rows, frame = (part.to_pandas(types_mapper=pd.ArrowDtype) for part in (table, pa.table(log)))
    # Loops over slates read Python's strings faster than Arrow's.
    frame["candidate"] = frame["candidate"].astype(object)
    return rows, frame, separator, notes


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


def _numbers(where: str, values: pa.ChunkedArray, decimal: str | None) -> pa.ChunkedArray:
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


def _slates(log: pd.DataFrame, window_ms: float) -> pd.Series[Any]:
    """Return a request id for each row: `import-` and the number of its slate's first row.

    Rows of one viewer are a slate if they lie within `window_ms` of the slate's first row.
    """
    ordered = log.sort_values(["viewer", "ts_ms"], kind="stable")
    viewer = ordered["viewer"].fillna("")
    # Rows without a viewer may belong to several people, so a window must not group them.
    until_ms = ordered["ts_ms"] + np.where(viewer == "", 0, window_ms)

    def first_of(first: Row, row: Row) -> Row:
        return first if row[0] == first[0] and row[1] <= first[2] else row

    rows = zip(viewer, ordered["ts_ms"], until_ms, ordered.index, strict=True)
    return pd.Series([f"import-{first[3]}" for first in accumulate(rows, first_of)], ordered.index)


def _warnings(
    fates: list[Fate],
    paid: dict[str, pd.Series[Any]],
    viewers: pd.Series[str],
    columns: FlatColumns,
    *,
    is_foreign: bool,
) -> Iterator[str]:
    """Yield warnings of how the columns, and amounts that were `paid`, were read.

    `viewers` are those of the slates. If a file `is_foreign`, its decimal mark may be a comma.
    """
    yield from (f"warning: {fate.column!r}: {fate.doubt}" for fate in fates if fate.doubt)
    if (is_foreign or any(fate.has_comma for fate in fates)) and not columns.dialect.decimal:
        others = {fate.column: fate.values for fate in fates if not fate.has_comma} | paid
        for name in (name for name, values in others.items() if may_be_thousands(values)):
            yield (
                f"warning: {name!r} has numbers with three decimals, such as 1.234, in a file that may have decimal "
                "commas: if these are thousands, repeat with --decimal ',', else with --decimal ."
            )
    lists = viewers.value_counts()
    again = float((lists > 1).mean()) if len(lists) else 1.0
    if again < ENOUGH_AGAIN and any(fate.owner == OWNERS["request_id"] for fate in fates):
        yield (
            f"warning: only {again:.0%} of the viewers have two lists or more, too few to tell the fields of viewers "
            "from the context; name them with --field"
        )
