"""Strict reader of one table of a log."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.contract.errors import TabrankError
from serve.contract.rankings import MAX_ID_CHARACTERS, MAX_MS
from serve.contract.validation import OTHER_UNITS
from serve.log.columns import COLUMNS
from serve.storage.conversion import GIVEN_TYPE, IDS

# A time field is refused if a larger share of its times looks like another unit. A smaller share
# may be true times of early 1970, such as birth dates.
MAX_OLD_SHARE = 0.5
# For each type, the other types that are read as it; null is always one.
CASTABLE = {
    pa.string(): (pa.types.is_string,),
    pa.int64(): (pa.types.is_integer,),
    pa.float64(): (pa.types.is_floating, pa.types.is_integer),
    pa.bool_(): (pa.types.is_boolean,),
}
WANTED = {
    pa.string(): "strings",
    pa.int64(): "whole numbers (milliseconds since 1970)",
    pa.float64(): "numbers",
    pa.list_(pa.string()): "lists of strings",
    pa.list_(pa.int64()): "lists of whole numbers",
    pa.bool_(): "true or false",
}


class TableReader:
    """Reader of one table, as `converted`, that validates and casts one column at a time.

    `table` is the name of the table. `first_row` is the row of the file at which `raw` begins. A
    column that is no field of a surface has the type that `COLUMNS` says.
    """

    def __init__(self, path: Path, raw: pa.Table, table: str, first_row: int = 0) -> None:
        self.path, self.raw, self.first_row = path, raw, first_row
        self.ids, self._types = IDS[table], COLUMNS[table]
        self.columns: dict[str, pa.ChunkedArray] = {}

    @property
    def table(self) -> pa.Table:
        """Return the columns read so far."""
        return pa.table(self.columns)

    def required(
        self, column: str, wanted: pa.DataType | None = None, *, nullable: bool = False
    ) -> TableReader:
        """Read a required column; nulls are refused unless `nullable`."""
        wanted = self._types[column] if wanted is None else wanted
        if not self.raw.num_columns:
            self.columns[column] = pa.chunked_array([], wanted)
            return self
        if column not in self.raw.column_names:
            remedy = "; add it, with nulls where nothing is known" * nullable
            raise TabrankError(
                f"{self.path}: the column {column!r} is missing; it holds {WANTED.get(wanted, wanted)}{remedy}"
            )
        values = self._cast(self.raw.schema.field(column), column, self.raw[column], wanted)
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
        if column in self.ids:
            ids = values if wanted == pa.string() else pc.list_flatten(lists)
            bad = pc.greater(pc.utf8_length(ids), MAX_ID_CHARACTERS)
            why = f"an id has over {MAX_ID_CHARACTERS} characters, which the service refuses; shorten it"
            self._refuse(column, bad, why, None if wanted == pa.string() else lists)
        if column in ("ts_ms", "ends_ms"):
            self.refuse_units(column, values)
        if column == "ts_ms":
            bad = pc.or_(pc.less(values, 0), pc.greater(values, MAX_MS))
            self._refuse(column, bad, f"is not from 0 to {MAX_MS}, milliseconds since 1970")
        self.columns[column] = values
        return self

    def optional(self, column: str, wanted: pa.DataType | None = None) -> TableReader:
        """Read a column if it exists; otherwise fill it with nulls."""
        # A struct without fields is false.
        wanted = self._types[column] if wanted is None else wanted
        if column in self.raw.column_names or not self.raw.num_columns:
            return self.required(column, wanted, nullable=True)
        self.columns[column] = pa.chunked_array([pa.nulls(self.raw.num_rows, wanted)])
        return self

    def flag(self, column: str) -> TableReader:
        """Read a column of true and false; it is false where it is null or does not exist."""
        self.optional(column)
        self.columns[column] = pc.fill_null(self.columns[column], False)
        return self

    def number_of(self, column: str, most: int) -> TableReader:
        """Read whole numbers from 1 to `most`; 1 where the column is null or does not exist."""
        self.optional(column)
        self.columns[column] = pc.fill_null(self.columns[column], 1)
        bad = pc.or_(pc.less(self.columns[column], 1), pc.greater(self.columns[column], most))
        self._refuse(column, bad, f"is not from 1 to {most}; write how many exposures the row stands for")
        return self

    def one_of(self, column: str, known: Iterable[str]) -> None:
        """Refuse a row whose value is not among the known ones."""
        names = sorted(set(known))
        bad = pc.invert(pc.is_in(self.columns[column], pa.array(names)))
        self._refuse(column, bad, f"is not an event of the surface; its events are {', '.join(names)}")

    def refuse_units(self, column: str, times: Any, tolerated: float = 0.0) -> None:
        """Refuse times if more than the share `tolerated` looks like another unit."""
        if tolerated and self.first_row:
            # A share is judged only in the first part of a file, because the last part may have a
            # single row.
            return
        for first, why in OTHER_UNITS:
            bad = pc.and_(pc.greater_equal(times, first), pc.less(times, 10 * first))
            if (pc.mean(bad).as_py() or 0.0) > tolerated:
                self._refuse(column, bad, f"a time {why}")

    def no_repeats(self, column: str) -> None:
        """Refuse a list that holds a value twice."""
        lists = self.columns[column].combine_chunks()
        codes = pc.list_flatten(lists).dictionary_encode().indices.to_numpy(zero_copy_only=False)
        base = int(codes.max(initial=0)) + 1
        pairs = np.sort(pc.list_parent_indices(lists).to_numpy().astype(np.int64) * base + codes)
        twice = pairs[1:][pairs[1:] == pairs[:-1]]
        if len(twice):
            raise TabrankError(
                f"{self.path}: column {column!r}, row {self.first_row + twice[0] // base}: "
                "holds a candidate twice; each may be shown once in a ranking"
            )

    def _cast(self, given: pa.Field, column: str, values: Any, wanted: pa.DataType) -> Any:
        """Return the values of the column `given` as `wanted`; messages call it `column`."""
        if pa.types.is_struct(wanted):
            return self._context(column, values.combine_chunks(), wanted)
        if not fits(values.type, wanted):
            holds = (given.metadata or {}).get(GIVEN_TYPE, str(values.type).encode()).decode()
            item = getattr(values.type, "value_type", values.type)
            is_float_id = column in self.ids and pa.types.is_floating(item)
            remedy = "; cast it to strings or whole numbers (Int64 in pandas)" * is_float_id
            raise TabrankError(
                f"{self.path}: column {column!r} holds {holds}; it must hold {WANTED.get(wanted, wanted)}{remedy}"
            )
        try:
            return values.cast(wanted)
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise TabrankError(
                f"{self.path}: column {column!r} cannot be read as {WANTED.get(wanted, wanted)}: {reason}"
            ) from None

    def _context(self, column: str, values: Any, wanted: pa.StructType) -> pa.ChunkedArray:
        """Return structs of all declared fields; a field that the column lacks is null."""
        is_null = pa.types.is_null(values.type)
        if not (is_null or pa.types.is_struct(values.type)):
            raise TabrankError(f"{self.path}: column {column!r} holds {values.type}; it must hold a struct")
        children = []
        for part in wanted:
            index = -1 if is_null else values.type.get_field_index(part.name)
            child = pa.nulls(len(values), part.type) if index < 0 else pc.struct_field(values, index)
            given = part if index < 0 else values.type.field(index)
            children.append(self._cast(given, f"{column}.{part.name}", child, part.type))
            if part.type == pa.int64():
                self.refuse_units(f"{column}.{part.name}", children[-1], MAX_OLD_SHARE)
        if not children:
            return pa.chunked_array([pa.nulls(len(values), wanted)])
        return pa.chunked_array([pa.StructArray.from_arrays(children, fields=list(wanted))])

    def _refuse(self, column: str, bad: Any, why: str, lists: Any = None) -> None:
        """Refuse the first bad value, or the first bad member of the `lists`."""
        at = pc.index(pc.fill_null(bad, False), True).as_py()
        if at >= 0:
            row = at if lists is None else pc.list_parent_indices(lists)[at].as_py()
            raise TabrankError(f"{self.path}: column {column!r}, row {self.first_row + row}: {why}")


def fits(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Return True if a column of one type is read as another."""
    if pa.types.is_null(given):
        return True
    if wanted in CASTABLE:
        return any(is_kind(given) for is_kind in CASTABLE[wanted])
    return pa.types.is_list(given) and fits(given.value_type, wanted.value_type)
