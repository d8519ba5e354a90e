"""Lease of a served log: which store holds the newest records, so that one writer numbers them.

The invariant: a number of the log belongs to one record for ever, and every acknowledged record is
in a segment of the log or in the journal of the store that the lease names. For example, a second
service starts with a store of its own. It fences the store of the first service, which can then
commit nothing more, writes that store's journal to the log, changes the lease, and only then gives
out the next number.
"""

from __future__ import annotations

import json
import os
import platform
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from serve.contract.errors import TabrankError, WriterFenced
from serve.features.field_types import TypeName
from serve.features.slots import OWNERS
from serve.storage.atomic_files import compare_and_set, content_of, file_lock
from serve.storage.bucket import BucketError, BucketPath, is_bucket
from serve.stores.protocol import shown

FILE = "LEASE"
FORMAT = 1
# Types of the fields of viewers, candidates and contexts.
Types = Mapping[str, Mapping[str, TypeName]]
# The type of each field of a log, such as `context.hour`. Only a lease of an
# earlier version has several types for a field.
Ledger = dict[str, list[TypeName]]


@dataclass(frozen=True)
class Lease:
    """Lease of a log.

    Attributes:
        epoch: Number of the lease; each new lease has the next one.
        store: Address, without credentials, of the store whose journal holds what the log lacks,
            for example the last minute of records.
        name: The store's name at this address.
        origin: Identifies the store, and tells it from another one that took its place.
        beside: Path of an embedded store, relative to the log's folder.
        surface: Text of the surface that the store's records follow.
        log: Where the log was when the lease was taken.
        released: True if the journal is empty, so that nobody needs the store.
        end: Last number that was used when the lease was taken or released.
        erasures: How many times viewers were erased from the log. A store that was filled before
            the last time still knows them.
        service: Identifies the service that took the lease; empty if no service did.
        types: Types of every field that the log ever held.
        erased: What the store missed of them. None: nothing. "": its rows still know viewers. Else
            its journal does too, and this is the text of `ErasedIds` by which to find its records.
        machine: Name of the machine on which the lease was taken; an embedded store is there.
        models: Where the service of the writer has its published models.
    """

    epoch: int
    store: str
    name: str
    surface: str
    log: str
    end: int
    beside: str | None = None
    origin: str = ""
    released: bool = False
    erasures: int = 0
    service: str = ""
    types: Ledger = field(default_factory=dict)
    erased: str | None = None
    machine: str = ""
    models: str = "var/models"

    @classmethod
    def of(cls, log: Path, store: str, name: str, surface: str, base: Path) -> Lease:
        """Return a lease that nobody took yet: for the store `name` at an address, from `base`."""
        kind, _, where = store.partition(":")
        beside, at = None, str(log.resolve())
        if kind == "lmdb":
            path = (base / where).resolve()
            store, beside = f"lmdb:{path}", None if is_bucket(at) else os.path.relpath(path, at)
        return cls(0, shown(store), name, surface, at, 0, beside, machine=platform.node())

    def names(self, other: Lease, log: Path) -> bool:
        """Return True if two leases of a log name the same store."""
        return self.name == other.name and other.store == self.address(log)

    def address(self, log: Path) -> str | None:
        """Return the address at which the store of the lease can be, or None.

        A log that was moved or copied together with its store finds the store beside itself. A log
        that was moved without its store gets None: it may be a copy, and the store belongs to the
        log at the old place.
        """
        if self.log == str(log.resolve()):
            return self.store
        # A log that was copied into a bucket has left its embedded store behind.
        if not self.beside or is_bucket(str(log)):
            return None
        beside = f"lmdb:{os.path.normpath(log.resolve() / self.beside)}"
        return None if beside == self.store else beside


def types_of(surface: str) -> Types:
    """Return the types of the fields in a surface's text, even if this release refuses the text."""
    declared = tomllib.loads(surface)
    return {
        owner: {
            name: spec["type"] if isinstance(spec, dict) else spec
            for name, spec in declared.get(owner, {}).items()
        }
        for owner in OWNERS
    }


def read_lease(log: Path) -> Lease | None:
    """Return the lease of a log; None if no writer took one.

    Raises:
        TabrankError: the file is damaged, or of another release.
        BucketError: the bucket cannot be read now.
    """
    path = log / FILE
    try:
        found = json.loads(path.read_text())
        if found.pop("format") == FORMAT:
            return Lease(**found)
    except FileNotFoundError:
        return None
    except BucketError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TabrankError(f"{path}: not readable ({error}); restore it from a backup of the log") from None
    raise TabrankError(f"{path}: of another format than {FORMAT}; use the tabrank that wrote it")


def swap_lease(log: Path, held: Lease | None, new: Lease) -> bool:
    """Change the lease durably if it still is `held`; return whether it was.

    Raises:
        TabrankError: the lease cannot be read, the folder cannot be written to, or the bucket has
            no conditional writes.
    """
    with file_lock(log / FILE):
        # Another release may have written an equal lease as another text, so compare the text as
        # read.
        text = content_of(log / FILE)
        if read_lease(log) != held:
            return False
        if text is not None and isinstance(log, BucketPath):
            # A server without conditional writes would let two writers number one log.
            with suppress(FileExistsError):
                (log / FILE).put(text, "create")
                raise TabrankError(
                    f"{log / FILE}: this bucket ignores the condition of a write (If-None-Match), so two writers "
                    "could number one log; use a server that has conditional writes"
                )
        content = json.dumps({"format": FORMAT, **asdict(new)}, indent=2) + "\n"
        return compare_and_set(log / FILE, text, content.encode())


@contextmanager
def under_lease(log: Path, epoch: int) -> Iterator[None]:
    """Publish a file of the log within the `with` block, under the lease with this epoch.

    In a bucket nothing can lock the lease, so it is read before and after the block.

    Raises:
        WriterFenced: the lease has another epoch by now.
    """
    with file_lock(log / FILE):
        _require(log, epoch)
        yield
        _require(log, epoch)


def _require(log: Path, epoch: int) -> None:
    held = read_lease(log)
    if held is not None and held.epoch != epoch:
        raise WriterFenced(f"{log}: another writer has taken over this log")
