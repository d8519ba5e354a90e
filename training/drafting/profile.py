"""Profile a log's columns without a surface: field types, distinct values and missing values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.contract.errors import TabrankError
from serve.contract.validation import RECENT_MS, other_unit
from serve.features.field_types import TypeName
from serve.features.slots import ENTITIES, F64, I64, Entity
from serve.log.join_coverage import MIN_JOIN, check_joins
from serve.log.reader import ONLY_TESTS, is_live, once, read_columns, unerased
from serve.log.replay import Codes, decode_stated
from serve.storage.conversion import CONVERSION
from training.data.fates import OWN_COLUMNS, OWN_NAME, TEXT_SHARE
from training.terminal import print_progress

# The columns of each entity's table that are not fields.
OWN: Mapping[Entity, set[str]] = {"viewer": {"id", "ts_ms"}, "candidate": {"id", "ts_ms", "ends_ms"}}
# With fewer rows than this, nobody can tell whether a column is free text.
FEW_ROWS = 50
# A column of whole numbers with at most this many values may hold codes of categories.
FEW_CODES = 20
# Sets of up to 16 values are kept whole. Longer ones are cut at the 99th percentile of their
# lengths, but at 64 at most.
FEW_IN_SET, MAX_IN_SET = 16, 64


@dataclass(frozen=True)
class Column:
    """A column of viewers, of candidates or of the context: its field type and what it holds.

    `type` is None if the column cannot or should not be a field; then `why` says the reason. For
    other columns, `why` is a remark. `missing` is the share of rows without a value.
    """

    owner: str
    name: str
    type: TypeName | None
    why: str = ""
    missing: float = 0.0
    distinct: int = 0
    # How many values a set keeps.
    max_size: int = 16
    # The distinct values of a category or set.
    values: frozenset[str] = frozenset()
    # Whether nearly every row has a value of its own.
    is_text: bool = False
    # The value of a number or time in each row; NaN if missing.
    numbers: F64 = field(default_factory=lambda: np.empty(0))
    # Whether requests state it. Then its rows are the shown candidates.
    request_time: bool = False

    @property
    def path(self) -> str:
        """Return the name by which features refer to the column."""
        return f"{self.owner}.{self.name}"


def read_tables(folder: Path) -> tuple[dict[str, pa.Table], bool]:
    """Read the four tables of a log with all their columns, and check how their ids join.

    Repeated requests, test traffic and erased rows are left out. Prints how many ids join, and what
    is repeated. Also returns whether the joins of candidates and of events reach MIN_JOIN. Viewers
    need not join, because a service's own log has viewers of whom it knows nothing.

    Raises:
        TabrankError: a column is missing or wrong, or no ids join. The message names the table and
            the column.
    """
    tables = {name: unerased(table) for name, table in read_columns(folder).items()}
    for name, column in (("request_id", pa.string()), ("value", pa.float64())):
        if name not in tables["events"].column_names:
            nulls = pa.nulls(len(tables["events"]), column)
            tables["events"] = tables["events"].append_column(name, nulls)
    fields = {owner: set(tables[f"{owner}s"].column_names) - OWN[owner] for owner in ENTITIES}
    shares = check_joins(folder, tables, fields, print_progress)
    exposures = tables["exposures"]
    if "traffic" in exposures.column_names:
        exposures = exposures.filter(is_live(exposures))
        if not len(exposures):
            raise TabrankError(f"{folder}: {ONLY_TESTS}")
    tables["exposures"] = once(exposures, "request_id")
    return tables, all(shares.get(name, 1.0) >= MIN_JOIN for name in ("candidates", "events"))


def codes_of(*columns: pa.ChunkedArray) -> list[I64]:
    """Encode the strings of all columns with one common vocabulary, as codes from 1; null is 0."""
    return Codes(*(column.cast(pa.string()) for column in columns)).columns


def profile(tables: dict[str, pa.Table]) -> list[Column]:
    """Return the columns of viewers and candidates that may be fields, then the context's."""
    found, exposures = [], tables["exposures"]
    stated = stated_columns(exposures)
    for owner in ENTITIES:
        table = tables[f"{owner}s"]
        num_ids = len(pc.unique(table["id"]))
        # A service's table also has columns, mostly empty, for the fields that requests state.
        own = OWN[owner] | (stated.keys() if owner == "candidate" else set())
        found += [_column(owner, f, table[f.name], num_ids) for f in table.schema if f.name not in own]
    for name, values in stated.items():
        column = _column("candidate", pa.field(name, values.type), values, len(values))
        found.append(replace(column, request_time=True))
    if "context" in exposures.column_names and pa.types.is_struct(exposures["context"].type):
        context = exposures["context"]
        for i, part in enumerate(context.type):
            found.append(_column("context", part, pc.struct_field(context, i), len(exposures)))
    return found


def stated_columns(exposures: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return each field that requests stated, with its value for each shown candidate `[N]`."""
    if "stated" not in exposures.column_names:
        return {}
    rows: list[dict[str, Any]] = []
    for batch in exposures.select(["request_id", "candidates", "stated"]).to_batches():
        for one in batch.to_pylist():
            fields = decode_stated(str(one["stated"] or "{}"), f"request_id {one['request_id']!r}")
            rows += [fields.get(name, {}) for name in one["candidates"]]
    names = dict.fromkeys(name for fields in rows for name in fields)
    try:
        return {name: pa.chunked_array([[fields.get(name) for fields in rows]]) for name in names}
    except pa.ArrowException as error:
        raise TabrankError(f"exposures: column 'stated': a field has values of two types: {error}") from None


def conversions(tables: dict[str, pa.Table]) -> list[str]:
    """Return for each kind of conversion by the reader a line that names the columns."""
    columns: dict[str, list[str]] = {}
    for name, table in tables.items():
        for outer in table.schema:
            for of in outer.type if pa.types.is_struct(outer.type) else [outer]:
                if words := _conversion(of):
                    columns.setdefault(words, []).append(f"{name}.{of.name}")
    return [f"{', '.join(names)}: {words}" for words, names in columns.items()]


def _conversion(of: pa.Field) -> str:
    """Return how the reader converted a column, or an empty string."""
    return str((of.metadata or {}).get(CONVERSION, b"").decode())


def _column(owner: str, of: pa.Field, values: pa.ChunkedArray, num_ids: int) -> Column:
    missing = values.null_count / len(values)
    name, kind = of.name, values.type
    if re.fullmatch(OWN_COLUMNS, name):
        return Column(owner, name, None, OWN_NAME)
    if missing == 1:
        return Column(owner, name, None, "every row is null")
    if kind == pa.string():
        return _category(owner, name, values, missing, num_ids)
    if kind == pa.list_(pa.string()):
        return _set(owner, name, values, missing)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _number(owner, name, values, missing, _conversion(of))
    hint = "; write it as floats for a number" if pa.types.is_decimal(kind) else ""
    return Column(owner, name, None, f"no field type supports {kind}{hint}")


def _category(owner: str, name: str, values: pa.ChunkedArray, missing: float, num_ids: int) -> Column:
    distinct = pc.unique(values.drop_null())
    num = len(distinct)
    given = min(len(values) - values.null_count, num_ids)
    is_text = num > FEW_ROWS and num >= TEXT_SHARE * given
    remark = "nearly every row has its own value: an id or free text" if is_text else ""
    return Column(
        owner, name, "category", remark, missing, num, values=frozenset(distinct.to_pylist()), is_text=is_text
    )


def _set(owner: str, name: str, values: pa.ChunkedArray, missing: float) -> Column:
    lengths = pc.list_value_length(values).drop_null().to_numpy()
    longest = int(lengths.max())
    max_size = max(1, longest if longest <= FEW_IN_SET else min(int(np.quantile(lengths, 0.99)), MAX_IN_SET))
    distinct = pc.unique(pc.list_flatten(values).drop_null()).to_pylist()
    remark = f"the first {max_size} of up to {longest} are kept" if longest > max_size else ""
    if not distinct:
        return Column(owner, name, None, "holds only empty lists")
    return Column(owner, name, "set", remark, missing, len(distinct), max_size, values=frozenset(distinct))


def _number(owner: str, name: str, values: pa.ChunkedArray, missing: float, remark: str) -> Column:
    is_whole = pa.types.is_integer(values.type)
    numbers = values.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
    if np.isinf(numbers).any():
        row = int(np.isinf(numbers).argmax())
        raise TabrankError(f"{owner}.{name}, row {row}: is infinite; use null for a missing number")
    given = numbers[~np.isnan(numbers)]
    distinct = len(np.unique(given))
    # Whole numbers in this range are times and not counts. Datetimes may lie outside of it.
    in_range = (given >= RECENT_MS) & (given < 10 * RECENT_MS)
    is_time = is_whole and (remark or np.mean(in_range) >= 0.99)
    if is_whole and not is_time and distinct <= FEW_CODES:
        remark = "if these are codes, write them as strings (`import csv --category`)"
    if distinct and not is_time and (why := other_unit(int(np.median(given)))):
        remark = f"{why} for a time"
    return Column(owner, name, "time" if is_time else "number", remark, missing, distinct, numbers=numbers)
