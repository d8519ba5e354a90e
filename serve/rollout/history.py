"""History of promotions, canaries and rollbacks: the file `HISTORY` in a models folder."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from serve.contract.errors import TabrankError
from serve.model.artifact import HISTORY, VERSION
from serve.storage.atomic_files import compare_and_set, content_of

# Limits the entries that the file keeps, of which the oldest are dropped.
MAX_ENTRIES = 1_000

Action = Literal["promote", "rollback", "canary", "end"]
# The pattern ensures that the name is a folder of the models folder, not another path.
Version = Annotated[str, msgspec.Meta(pattern=f"^{VERSION.pattern}$")]


class HistoryEntry(msgspec.Struct, frozen=True):
    """One action on a version; `was` and `now` are the current version before and after it."""

    at_ms: int
    # `canary` starts a canary, and `end` ends it by hand.
    action: Action
    version: Version
    was: Version | None
    now: Version | None
    by: Literal["command", "service"]
    reason: str = ""


_decoder = msgspec.json.Decoder(HistoryEntry)


@dataclass(frozen=True)
class History:
    """Entries, oldest first."""

    entries: tuple[HistoryEntry, ...] = ()

    @cached_property
    def rolled_back(self) -> dict[str, HistoryEntry]:
        """Versions that were rolled back and not promoted or made canary since, by name."""
        found: dict[str, HistoryEntry] = {}
        for entry in self.entries:
            if entry.action == "rollback":
                found[entry.version] = entry
            elif entry.action in ("promote", "canary"):
                found.pop(entry.version, None)
        return found

    def earlier(self, current: str | None) -> Iterator[str]:
        """Return the good versions that were current before `current`, the last one first.

        A version that was current several times comes several times.
        """
        return (each for each in self._before(current) if each != current and each not in self.rolled_back)

    def previous(self, current: str | None, usable: Collection[str]) -> str | None:
        """Return the last good version that was current before `current` and is usable."""
        return next((version for version in self.earlier(current) if version in usable), None)

    def promoted_ms(self, current: str | None) -> int | None:
        """Return when `current` was promoted; None if it is current because of a rollback."""
        for entry in reversed(self.entries):
            if entry.was != entry.now:
                is_it = entry.action == "promote" and entry.version == current
                return entry.at_ms if is_it else None
        return None

    def _before(self, current: str | None) -> Iterator[str]:
        """Follow the changes back from `current`, or from the last one if it has none."""
        is_known = any(current in (entry.was, entry.version) for entry in self.entries)
        version = current if is_known else None
        for entry in reversed(self.entries):
            if version is None and entry.now is not None:
                version = entry.now
                yield version
            if entry.was != entry.now and entry.now == version:
                version = entry.was
                if version is not None:
                    yield version


def read(models: Path) -> History:
    """Read the history of a models folder; a missing file is empty, and invalid lines are skipped.

    Raises:
        OSError: the file cannot be read.
    """
    return _decoded(content_of(models / HISTORY) or b"")


def _decoded(content: bytes) -> History:
    entries = []
    for line in content.splitlines():
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            entries.append(_decoder.decode(line))
    return History(tuple(entries))


def append(models: Path, entry: HistoryEntry) -> None:
    """Add an entry durably; readers see the file before or after the change.

    Raises:
        OSError: the file cannot be written, or cannot be read. It is then not replaced, because
            the other entries would be lost.
        TabrankError: another process has changed it meanwhile.
    """
    held = content_of(models / HISTORY)
    entries = [*_decoded(held or b"").entries, entry][-MAX_ENTRIES:]
    new = b"".join(msgspec.json.encode(each) + b"\n" for each in entries)
    if not compare_and_set(models / HISTORY, held, new):
        raise TabrankError(f"models {models}: another process has changed {HISTORY} meanwhile; retry")


class CachedHistory:
    """Current history of a models folder, read again only if the file was replaced."""

    def __init__(self, models: Path) -> None:
        self._path = models / HISTORY
        self._seen: tuple[int, int] | None = None
        self._history = History()

    def read(self) -> History:
        """Return the history, or the last one if it cannot be read; some µs without a change."""
        with contextlib.suppress(OSError):
            found = self._path.stat() if self._path.exists() else None
            seen = found and (found.st_ino, found.st_mtime_ns)
            if seen != self._seen:
                self._history = read(self._path.parent)
                self._seen = seen
        return self._history
