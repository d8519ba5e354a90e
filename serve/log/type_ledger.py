"""Ledger of a log's fields: a field keeps its type, and a change is refused before it is written.

The lease has the ledger, which only grows. Of an import, whoever reads it checks the types.
"""

from __future__ import annotations

from pathlib import Path

from serve.contract.errors import StoreUnavailable
from serve.features.field_types import TYPES
from serve.log.lease import Ledger, read_lease, types_of

# Limits the ledger, because the lease is read for each segment. A surface has at most 128 KiB.
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
    held = lease.types if lease else {}
    for name, (new,) in declared.items():
        if new not in held.get(name, [new]):
            old = " and ".join(one for one in held[name] if one in TYPES)
            remedy = "give the field a new name, or its old type back"
            raise StoreUnavailable(f"{name} is {old} in the log {folder}, but {new} in the surface; {remedy}")
    ledger = declared | {name: types for name, types in held.items() if name not in declared}
    if len(str(ledger)) > MAX_BYTES:
        raise StoreUnavailable(f"{folder}: names of fields exceed {MAX_BYTES:,} bytes; begin a new log")
    return ledger
