"""Ledger of a log's fields: a field keeps its type, and a change is refused before it is written.

The lease has the ledger, which only grows. An import has no lease, so its files tell the types.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from serve.contract.errors import StoreUnavailable
from serve.features.field_types import TYPES, TypeName
from serve.features.surface import RESERVED
from serve.log.lease import Ledger, read_lease, types_of
from serve.log.table_reader import fits
from serve.storage.conversion import IDS, converted
from serve.storage.parquet import Damaged, data_files, footer, unmerged

# The ledger names a column by its owner, such as `viewer.country`. The parts of the column
# `context` of exposures have such names already.
PREFIXES = {"viewers": "viewer.", "candidates": "candidate.", "exposures": ""}
# Limits the ledger, because the lease is read for each segment. A surface has at most 128 KiB, and
# the ledger has the columns of an import too.
MAX_BYTES = 1 << 20


def fields_of(surface: str) -> Ledger:
    """Return a ledger with the type of each field in a surface's text, such as `context.hour`."""
    types = types_of(surface)
    return {f"{owner}.{name}": [types[owner][name]] for owner in types for name in types[owner]}


def checked_types(folder: Path, surface: str) -> Ledger:
    """Return the ledger of a log that takes records of a surface from now on.

    Raises:
        StoreUnavailable: the surface changes the type of a field, or the ledger becomes too large.
    """
    lease, declared = read_lease(folder), fields_of(surface)
    held = lease.types if lease else _imported(folder)
    for name, (new,) in declared.items():
        if new not in held.get(name, [new]):
            old = " and ".join(one for one in held[name] if one in TYPES)
            remedy = "give the field a new name, or its old type back"
            raise StoreUnavailable(f"{name} is {old} in the log {folder}, but {new} in the surface; {remedy}")
    ledger = declared | {name: types for name, types in held.items() if name not in declared}
    if len(str(ledger)) > MAX_BYTES:
        raise StoreUnavailable(f"{folder}: names of fields exceed {MAX_BYTES:,} bytes; begin a new log")
    return ledger


@unmerged
def _imported(folder: Path) -> Ledger:
    """Return the types that fit each column of a log that no service has written to.

    Several may fit, such as those for whole numbers, until a surface declares one.
    """
    ledger = Ledger()
    for name, types in _columns(folder):
        ledger[name] = [one for one in ledger.get(name, types) if one in types]
    return ledger


def _columns(folder: Path) -> Iterator[tuple[str, list[TypeName]]]:
    """Yield the fields in each file of a log, and the types that fit each."""
    for table, prefix in PREFIXES.items():
        for path in (*data_files(folder / f"{table}.parquet"), *data_files(folder / table)):
            # Whoever reads the records of a damaged file reports it.
            with suppress(Damaged, pa.ArrowException):
                rows = converted(footer(path).schema.to_arrow_schema().empty_table(), IDS[table])
                for column in rows.flatten().schema:
                    types = [name for name, one in TYPES.items() if fits(column.type, one.arrow)]
                    is_field = prefix or column.name.startswith("context.")
                    # A column of nulls fits every type, and says nothing.
                    if is_field and 0 < len(types) < len(TYPES) and not RESERVED.fullmatch(column.name):
                        yield prefix + column.name, types
