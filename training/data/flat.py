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

from serve.contract.errors import TabrankError
from serve.contract.validation import one_of, refuse_existing
from serve.features.slots import ENTITIES
from serve.log.join_coverage import MIN_JOIN, check_joins
from serve.log.writer import write_log
from serve.storage.conversion import converted
from training.data.doubts import doubts
from training.data.fates import OWNERS, STATED, Fate, Ids, fates
from training.data.flat_events import events_of
from training.data.flat_file import FlatColumns, FlatFile, read_flat
from training.data.numbers import Reading, may_be_thousands
from training.terminal import print_progress

# The parts of a column's fate that are reported.
TOLD = ("column", "owner", "why", "disagreement")
NOT_READ = "no field is read from --events; name an amount with --value, or put the column into --source"
# By what the rows of one id are told apart.
PARTNERS = {"candidate": "viewer", "viewer": "request_id", "request_id": "candidate"}
# With lists of their own, so large a share of the viewers tells their fields from the context.
ENOUGH_AGAIN = 0.1
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
    # In files of two kinds, a column of events or amounts may also be a field of what was shown.
    file = read_flat(source, replace(columns, events=(), amounts={}) if acts else columns)
    shown, exposures = _exposures(file)
    act_file, unread = file, list[Fate]()
    if acts:
        act_file = read_flat(acts, replace(columns, position=None, categories=(), owners={}))
        unread = _unread(act_file)
    all_events, amounts, asked = events_of(act_file)
    events = all_events if acts else _once(all_events)

    for name in columns.owners:
        one_of(name, file.unnamed, "--field", "column")
    log = file.log
    ids = {own: Ids(log[own], log[other], log["at_ms"]) for own, other in PARTNERS.items()}
    found = list(fates(file, ids))
    fields = {
        key: _fields(ids[key], log, [fate for fate in found if fate.owner == OWNERS[key]]) for key in ids
    }
    if stated := {fate.column: fate.values for fate in found if fate.owner == STATED}:
        exposures["stated"] = _stated(shown, pd.DataFrame(stated))
    tables = {
        "viewers": _table(fields["viewer"], "id"),
        "candidates": _table(fields["candidate"], "id"),
        "exposures": _table(exposures, "request_id"),
        "events": _table(events, "id"),
    }
    if len(fields["request_id"].columns):
        context = _table(fields["request_id"].loc[exposures.index], "id").drop_columns("id")
        tables["exposures"] = tables["exposures"].append_column("context", context.to_struct_array())
    kinds = Counter(events["kind"])
    missing = {fate.column: float(fate.values.isna().mean()) for fate in found if fate.owner}
    # Events in another file are matched to candidates only later, by the command `surface`.
    doubted = doubts(tables["exposures"], {} if acts else kinds, missing)
    notes = file.notes + (act_file.notes if acts else [])
    warnings = [*notes, *amounts, *doubted, *asked, *_of_columns(found, file, act_file, exposures["viewer"])]
    begin, end = (pd.Timestamp(exposures["ts_ms"].agg(which), unit="ms") for which in ("min", "max"))
    return tables, {
        "kinds": sorted(kinds),
        "slates": columns.rule,
        "from": str(begin),
        "to": str(end),
        "mean_candidates": len(shown) / len(exposures),
        "repeated_rows": len(log) - len(shown),
        "merged_events": len(all_events) - len(events),
        "columns": [{name: getattr(fate, name) for name in TOLD} for fate in (*found, *unread)],
        "warnings": warnings,
    }


def _exposures(file: FlatFile) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows that first show a candidate in its slate, and the slates.

    Adds to the file's log the time of each row's slate, `at_ms`, and the slate if no column has it.
    """
    columns, log = file.columns, file.log
    if not columns.slate:
        log["request_id"] = _slates(log, columns.window_ms)
    log["at_ms"] = log.groupby("request_id")["ts_ms"].transform("min").astype("int64")
    # Sort by position, or keep the order of the file.
    shown = log.sort_values("position", kind="stable").drop_duplicates(["request_id", "candidate"])
    slates = shown.groupby("request_id", sort=False)
    if slates["viewer"].nunique(dropna=False).max() > 1:
        raise TabrankError(f"{file.path}: --slate: {columns.slate!r} has one value in rows of two viewers")
    exposures = slates.agg(ts_ms=("at_ms", "min"), viewer=("viewer", "first"), candidates=("candidate", list))
    return shown, exposures.sort_values("ts_ms", kind="stable")


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


def _once(events: pd.DataFrame) -> pd.DataFrame:
    """Return the events without repetitions; of a repeated row, keep the one with the amount."""
    ordered = events.sort_values("value", kind="stable") if "value" in events else events
    is_again = ordered.duplicated(["request_id", "candidate", "kind"])
    return events[~is_again.reindex(events.index)]


def _unread(acts: FlatFile) -> list[Fate]:
    """Return the fates of the columns of a file of events that no option names."""
    return [
        Fate(f"{acts.path}: {name}", Reading(values), "", f"{values.notna().mean():.0%} have one; {NOT_READ}")
        for name, values in acts.rows[acts.unnamed].items()
    ]


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


def _of_columns(found: list[Fate], file: FlatFile, acts: FlatFile, viewers: pd.Series[str]) -> Iterator[str]:
    """Yield warnings of how the columns, and the amounts of events, were read.

    `viewers` are those of the slates.
    """
    yield from (f"warning: {fate.column!r}: {fate.read.doubt}" for fate in found if fate.read.doubt)
    # Where columns are separated by semicolons, the decimal mark may be a comma.
    has_commas = ";" in (file.separator, acts.separator) or any(fate.read.has_comma for fate in found)
    if has_commas and not file.columns.dialect.decimal:
        others = {fate.column: fate.values for fate in found if not fate.read.has_comma}
        paid = {name: acts.rows[name] for name in acts.columns.amounts.values()}
        for name in (name for name, values in (others | paid).items() if may_be_thousands(values)):
            yield (
                f"warning: {name!r} has numbers with three decimals, such as 1.234, in a file that may have decimal "
                "commas: if these are thousands, repeat with --decimal ',', else with --decimal ."
            )
    lists = viewers.value_counts()
    again = float((lists > 1).mean()) if len(lists) else 1.0
    if again < ENOUGH_AGAIN and any(fate.owner == OWNERS["request_id"] for fate in found):
        yield (
            f"warning: only {again:.0%} of the viewers have two lists or more, too few to tell the fields of viewers "
            "from the context; name them with --field"
        )
    texts = (fate for fate in found if pd.api.types.is_string_dtype(fate.values.dtype))
    for fate in (one for one in texts if 2 * one.values.str.contains(LIST).sum() > one.values.count()):
        yield (
            f"warning: most cells of {fate.column!r} look like lists, and are read as single strings; for a set, give "
            "a .parquet file in which this column holds lists of strings"
        )
