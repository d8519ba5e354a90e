"""Import of a flat file, one row for each candidate that was shown, to a canonical log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.log.writer import write_log

# Infer the types of a CSV from all its rows, up to this many bytes.
BLOCK_BYTES = 1 << 30
# Times from 1999 to 2103 in ms, and the factors from s, ms, µs and ns.
EPOCH_MS = (9.4e11, 4.2e12)
FACTORS = (1e3, 1.0, 1e-3, 1e-6)
# Columns of the rows that name an owner of fields, and the owner.
OWNERS = {"candidate": "candidates", "viewer": "viewers", "request_id": "context"}
STRING = pd.ArrowDtype(pa.string())
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class FlatColumns:
    """Names of a flat file's columns, and the rule by which its rows are slates.

    `events` hold 1 or true where the viewer acted, or the kind of event. Without `slate`, the rows
    of a viewer at one time, or within `window_ms` of the first one, are a slate.
    """

    candidate: str
    time: str
    events: tuple[str, ...]
    viewer: str | None = None
    slate: str | None = None
    position: str | None = None
    window_ms: float = 0.0

    @property
    def rule(self) -> str:
        """Return the rule in words."""
        whose = f"of the same {self.viewer} " if self.viewer else ""
        when = f"within {self.window_ms / 1e3:g} s, by" if self.window_ms else "at the same"
        return f"the rows with the same {self.slate}" if self.slate else f"the rows {whose}{when} {self.time}"

    def given(self) -> Iterator[tuple[str, str]]:
        """Yield the option and the name of each column."""
        for option in ("candidate", "time", "viewer", "slate", "position"):
            if name := getattr(self, option):
                yield option, name
        yield from (("event", name) for name in self.events)


def import_flat(source: Path, out: Path, columns: FlatColumns) -> dict[str, Any]:
    """Write the log of a flat file to `out`; return what became of rows and columns.

    Raises:
        TabrankError: `out` exists, or as `flat_tables`.
    """
    refuse_existing(out)
    tables, found = flat_tables(source, columns)
    # A log whose viewers are all unknown has no table of them.
    write_log(out, {name: table for name, table in tables.items() if len(table)})
    return {name: len(table) for name, table in tables.items()} | found


def flat_tables(source: Path, columns: FlatColumns) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Return the tables of the log of a CSV or Parquet file, and what became of rows and columns.

    A column that no option names goes to the candidates, the viewers or the context of rankings: to
    the one with the fewest ids for each of which its rows agree. A candidate that comes again in a
    slate is shown once.

    Raises:
        TabrankError: the file cannot be read, or a column is missing or does not fit.
    """
    rows, log = _read(source, columns)
    # Sort by position, or keep the order of the file.
    log["request_id"] = rows[columns.slate].astype(STRING) if columns.slate else _slates(log, columns)
    shown = log.sort_values("place", kind="stable").drop_duplicates(["request_id", "candidate"])
    slates = shown.groupby("request_id", sort=False)
    exposures = slates.agg(ts_ms=("ts_ms", "min"), viewer=("viewer", "first"), candidates=("candidate", list))
    if slates["viewer"].nunique(dropna=False).max() > 1:
        raise TabrankError(f"{source}: --slate: {columns.slate!r} has a value with rows of two viewers")
    exposures = exposures.sort_values("ts_ms", kind="stable").astype({"ts_ms": "int64"})
    fields, left_out = _divided(rows.drop(columns=[name for _, name in columns.given()]), log)
    viewers, candidates = (log[name].dropna().unique() for name in ("viewer", "candidate"))
    tables = {
        "viewers": _table(pd.DataFrame(fields["viewer"], viewers), "id"),
        "candidates": _table(pd.DataFrame(fields["candidate"], candidates), "id"),
        "exposures": _table(exposures, "request_id"),
        "events": _events(source, rows, log, columns),
    }
    if fields["request_id"]:
        context = _table(pd.DataFrame(fields["request_id"], exposures.index), "id").drop_columns("id")
        tables["exposures"] = tables["exposures"].append_column("context", context.to_struct_array())
    return tables, {
        "kinds": sorted(set(tables["events"]["kind"].to_pylist())),
        "slates": columns.rule,
        "mean_candidates": len(shown) / len(exposures),
        "repeated_rows": len(log) - len(shown),
        "fields": {OWNERS[owner]: list(found) for owner, found in fields.items()},
        "left_out": left_out,
    }


def _table(frame: pd.DataFrame, index: str) -> pa.Table:
    table = pa.Table.from_pandas(frame.rename_axis(index).reset_index(), preserve_index=False)
    # Its description of pandas' types keeps pandas itself from reading the file.
    return table.replace_schema_metadata(None)


def _read(source: Path, columns: FlatColumns) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the file; return its rows, and their viewer, candidate, time and place in the slate."""
    try:
        if source.suffix == ".parquet":
            table = pq.read_table(source)
        else:
            read = pcsv.ReadOptions(block_size=BLOCK_BYTES)
            table = pcsv.read_csv(source, read, convert_options=pcsv.ConvertOptions(strings_can_be_null=True))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TabrankError(f"{source}: not readable as CSV or Parquet: {reason}") from None
    known = table.column_names
    for option, name in columns.given():
        if known.count(name) != 1:
            there = ", ".join(known)
            raise TabrankError(f"{source}: --{option}: {name!r} is not one of its columns, {there}")
        if option in ("candidate", "time", "slate") and table[name].null_count:
            raise TabrankError(f"{source}: --{option}: {name!r} is empty in a row; every row needs a value")
    if not len(table):
        raise TabrankError(f"{source}: has no rows; a log needs at least one")
    rows = table.to_pandas(types_mapper=pd.ArrowDtype)
    viewer = rows[columns.viewer] if columns.viewer else pd.Series(pd.NA, rows.index)
    place = rows[columns.position] if columns.position else rows.index
    log = pd.DataFrame({"viewer": viewer, "candidate": rows[columns.candidate], "place": place})
    for name in ("viewer", "candidate"):
        # Pandas writes whole numbers with gaps as floats.
        is_float = pd.api.types.is_float_dtype(log[name])
        log[name] = (log[name].astype("Int64") if is_float else log[name]).astype(STRING)
    return rows, log.assign(ts_ms=_times(source, table[columns.time].combine_chunks(), columns.time))


def _slates(log: pd.DataFrame, columns: FlatColumns) -> pd.Series[Any]:
    """Return the request id of each row, by viewer and time."""
    ordered = log.sort_values(["viewer", "ts_ms"], kind="stable")
    number, of, until_ms = -1, "", -1.0
    numbers = []
    for viewer, at_ms in zip(ordered["viewer"].fillna(""), ordered["ts_ms"], strict=True):
        if viewer != of or at_ms > until_ms:
            # Rows of unknown viewers may be those of several, so no window holds them together.
            number, of, until_ms = number + 1, viewer, at_ms + (columns.window_ms if viewer else 0)
        numbers.append(f"r{number}")
    return pd.Series(numbers, ordered.index, STRING)


def _divided(rest: pd.DataFrame, log: pd.DataFrame) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the columns of each owner, with a value for each id, and those left out."""
    num_ids = {owner: log[owner].nunique() for owner in OWNERS}
    # Ids of a single row agree with everything, so they come last.
    ranked = sorted(num_ids, key=lambda o: (num_ids[o] == len(log), o == "request_id", num_ids[o]))
    keys = {owner: log[owner].astype("category") for owner in ranked}
    fields: dict[str, dict[str, Any]] = {owner: {} for owner in num_ids}
    left_out = []
    for name, values in rest.items():
        given = values.notna()
        for owner in ranked if given.any() and name not in ("", "id", "ts_ms") else ():
            groups = values.groupby(keys[owner], observed=True)
            if keys[owner][given].notna().all() and groups.nunique().max() == 1:
                fields[owner][str(name)] = groups.first()
                break
        else:
            left_out.append(str(name))
    return fields, left_out


def _events(source: Path, rows: pd.DataFrame, log: pd.DataFrame, columns: FlatColumns) -> pa.Table:
    parts = []
    for name in columns.events:
        values = rows[name].dropna()
        is_kind = pd.api.types.is_string_dtype(values)
        if not (is_kind or values.isin([0, 1]).all()):
            raise TabrankError(
                f"{source}: --event: {name!r} holds other values than 0 and 1; it must hold 1 or true where the "
                "viewer acted, or the kind of event, or nothing"
            )
        values = values if is_kind else values[values == 1]
        parts.append(log.loc[values.index].assign(kind=values if is_kind else name))
    events = pd.concat(parts).sort_values("ts_ms", kind="stable", ignore_index=True).drop(columns="place")
    events = events.astype({"ts_ms": "int64"})
    if events.empty:
        raise TabrankError(f"{source}: --event: no row has an event, so that nothing can be learned")
    return _table(events.set_index("e" + events.index.astype(str)), "id")


def _times(source: Path, values: pa.Array, name: str) -> F64:
    """Return times in ms since 1970, with fractions: at one ms, several people may look."""
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        return np.asarray(values.cast(pa.timestamp("us"), safe=False).cast(pa.int64())) / 1e3
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        numbers = values.cast(pa.float64(), safe=False).to_numpy()
        for factor in FACTORS:
            if EPOCH_MS[0] < np.median(numbers) * factor < EPOCH_MS[1]:
                return np.asarray(numbers * factor)
    raise TabrankError(
        f"{source}: --time: {name!r} holds {values.type}, such as {values[0]}; a time is ISO 8601 "
        "(2026-01-31T12:00:00Z) or a number of s, ms, µs or ns since 1970"
    )
