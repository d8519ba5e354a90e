"""Types of fields: which ones a log has held, and how a log with several types of a field is read.

A field of a log keeps its type. The lease has the ledger of all fields and types, which only grows.
If a log has no such lease, the ledger is built from the schemas of its files.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from serve.contract.errors import StoreUnavailable
from serve.features.field_types import TYPES, TypeName
from serve.features.surface import RESERVED
from serve.log.lease import Ledger, read_lease, types_of
from serve.log.table_reader import fits
from serve.storage.conversion import IDS, converted
from serve.storage.parquet import Damaged, data_files, footer, unmerged

logger = logging.getLogger("tabrank")
# The ledger names a column by its owner, such as `viewer.country`. The parts of the column
# `context` of exposures have such names already.
PREFIXES = {"viewers": "viewer.", "candidates": "candidate.", "exposures": ""}
# Comes before the types of a column that fits each of them and has none yet.
UNDECIDED: Any = "undecided"
# Limits the ledger, because the lease is read for each segment. A surface has at most 128 KiB, and
# the ledger has the columns of an import too.
MAX_BYTES = 1 << 20


def fields_of(surface: str) -> Ledger:
    """Return a ledger with the type of each field in a surface's text, such as `context.hour`."""
    types = types_of(surface)
    return {f"{owner}.{name}": [types[owner][name]] for owner in types for name in types[owner]}


@unmerged
def held_types(folder: Path, surface: str) -> Ledger:
    """Return the types of each field that a log has held, in the order in which they came.

    If its lease has no ledger, they are those of the files' schemas, and of the journal that the
    lease names. A segment tells the type exactly. A column of an import may fit several types, such
    as whole numbers; it has the type that the `surface` declares, if that one fits. Otherwise it is
    `UNDECIDED`, before the types that fit, until a surface declares it.
    """
    held, declared, ledger = read_lease(folder), fields_of(surface), Ledger()
    if held is not None and held.types is not None:
        return held.types
    for name, types in (*_columns(folder), *fields_of(held.surface if held else "").items()):
        own = [type_ for type_ in types if [type_] == declared.get(name)]
        new = own or ([UNDECIDED, *types] if len(types) > 1 else types)
        old = ledger.get(name, [])
        # What is known exactly stands for what fits.
        if {*old} & {*new} and UNDECIDED in (*old, *new):
            ledger[name] = min(old, new, key=len)
        else:
            ledger[name] = [one for one in dict.fromkeys([*old, *new]) if one != UNDECIDED or not old]
    return ledger


def checked_types(folder: Path, surface: str) -> Ledger:
    """Return the ledger of a log that takes records of a surface from now on.

    Raises:
        StoreUnavailable: the surface changes the type of a field, or the ledger becomes too large.
    """
    held, declared = held_types(folder, surface), fields_of(surface)
    for name, (new,) in declared.items():
        if new not in held.get(name, [new]):
            old, remedy = (
                " and ".join(held[name]).removeprefix("undecided and "),
                "give the field a new name, or its old type back",
            )
            raise StoreUnavailable(f"{name} is {old} in the log {folder}, but {new} in the surface; {remedy}")
    decided = {name: types for name, types in held.items() if UNDECIDED not in types or name not in declared}
    if len(str(ledger := declared | decided)) > MAX_BYTES:
        raise StoreUnavailable(f"{folder}: names of fields exceed {MAX_BYTES:,} bytes; begin a new log")
    return ledger


def _columns(folder: Path) -> Iterator[tuple[str, list[TypeName]]]:
    """Yield the fields in each file of a log, oldest first, and the types that fit each."""
    for table, prefix in PREFIXES.items():
        for path in (*data_files(folder / f"{table}.parquet"), *data_files(folder / table)):
            # Whoever reads the records of a damaged file reports it.
            with suppress(Damaged, pa.ArrowException):
                rows = converted(footer(path).schema.to_arrow_schema().empty_table(), IDS[table])
                is_served = "seq" in rows.column_names
                for column in rows.flatten().schema:
                    types = [one for one in TYPES if _is_of(column.type, one, is_served)]
                    is_field = prefix or column.name.startswith("context.")
                    # A column of nulls fits every type, and says nothing.
                    if is_field and 0 < len(types) < len(TYPES) and not RESERVED.fullmatch(column.name):
                        yield prefix + column.name, types


def _is_of(given: pa.DataType, type_: TypeName, is_served: bool) -> bool:
    """Return True if a column is read as a type. A service writes whole numbers for times alone."""
    return fits(given, TYPES[type_].arrow) and not (
        is_served and type_ == "number" and pa.types.is_integer(given)
    )


class Unmixed:
    """Rows of a log in which each field has one type; values of another type count as missing.

    A field that has had several types is read in the type that the `surface` declares if that is
    one of them, or else in the one that came last. Other fields are left as they are.
    """

    def __init__(self, folder: Path, surface: str) -> None:
        self.log, self._missing, declared = folder, Counter[str](), fields_of(surface)
        self._mixed = {
            name: next((type_ for type_ in types if [type_] == declared.get(name)), types[-1])
            for name, types in held_types(folder, surface).items()
            if len(types) > 1 and UNDECIDED not in types
        }

    def __call__(self, table: str, rows: pa.Table) -> pa.Table:
        """Return rows of a table, as `converted`, without the values of another type."""
        for at, column in enumerate(rows.schema if self._mixed else ()):
            kept = self._kept(PREFIXES.get(table, "") + column.name, rows[at], "seq" in rows.column_names)
            rows = rows.set_column(at, column.with_type(kept.type), kept)
        return rows

    def report(self) -> None:
        """Log one warning with the number of values of each field that counted as missing."""
        if found := ", ".join(f"{num:,} of {name}" for name, num in self._missing.items() if num):
            logger.warning("%s: values of another type count as missing: %s", self.log, found)

    def _kept(self, name: str, values: Any, is_served: bool) -> Any:
        """Return the values of a column, null if it has another type."""
        if name == "context" and pa.types.is_struct(values.type):
            parts = zip(values.type, values.combine_chunks().flatten(), strict=True)
            arrays = [self._kept(f"context.{part.name}", each, is_served) for part, each in parts]
            return pa.StructArray.from_arrays(arrays, [part.name for part in values.type])
        if name == "stated" and pa.types.is_string(values.type):
            return pa.array([self._stated(text, is_served) for text in values.to_pylist()], pa.string())
        if name not in self._mixed or _is_of(values.type, self._mixed[name], is_served):
            return values
        self._missing[name] += len(values) - values.null_count
        return pa.nulls(len(values), TYPES[self._mixed[name]].arrow)

    def _stated(self, text: str | None, is_served: bool) -> str | None:
        """Return the fields that a request stated, as JSON, null where they have another type."""
        # Whoever uses a text with anything else refuses it.
        with suppress(msgspec.MsgspecError, pa.ArrowException, OverflowError):
            stated = msgspec.json.decode(text or "", type=dict[str, dict[str, Any]])
            for fields in stated.values():
                for name, value in fields.items():
                    fields[name] = self._kept(f"candidate.{name}", pa.array([value]), is_served)[0].as_py()
            return msgspec.json.encode(stated).decode()
        return text
