"""History of promotions, canaries and rollbacks: the file `HISTORY` in a models folder."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from serve.config.settings import VERSION
from serve.log.atomic_files import write_whole

HISTORY = "HISTORY"
# Keep the last 1,000 entries.
MAX_ENTRIES = 1_000

Action = Literal["promote", "rollback", "canary", "end"]
# The pattern ensures that the name is a folder of the models folder, not another path.
Version = Annotated[str, msgspec.Meta(pattern=f"^{VERSION.pattern}$")]


class HistoryEntry(msgspec.Struct, frozen=True):
    """One action on a version; `was` and `now` are the current version before and after it."""

    at_ms: int
    # `canary` starts a canary, `end` is its end by hand.
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
        """Versions that were rolled back and not promoted or made canary since, with the entry."""
        found: dict[str, HistoryEntry] = {}
        for entry in self.entries:
            if entry.action == "rollback":
                found[entry.version] = entry
            elif entry.action in ("promote", "canary"):
                found.pop(entry.version, None)
        return found

    def previous(self, current: str | None, published: Collection[str] | None = None) -> str | None:
        """Return the last good version before `current` that is still published."""
        for version in reversed(self._before(current)):
            gone = published is not None and version not in published
            if version != current and version not in self.rolled_back and not gone:
                return version
        return None

    def _before(self, current: str | None) -> list[str]:
        """Return the versions on the line before `current`; the whole line if it is not on it."""
        # A version after `current` is a promotion that was recorded but not carried out.
        line = self._line
        places = [at for at, version in enumerate(line) if version == current]
        return line[: places[-1]] if places else line

    def promoted_ms(self, current: str | None) -> int | None:
        """Return when `current` was promoted; None if it is current because of a rollback."""
        for entry in reversed(self.entries):
            if entry.was != entry.now:
                is_it = entry.action == "promote" and entry.version == current
                return entry.at_ms if is_it else None
        return None

    @cached_property
    def _line(self) -> list[str]:
        """Versions that were current one after the other, without those that were rolled back."""
        line: list[str] = []
        for entry in self.entries:
            if entry.action == "promote":
                for version in (entry.was, entry.version):
                    if version and line[-1:] != [version]:
                        line.append(version)
            elif entry.action == "rollback" and entry.now != entry.was and entry.now:
                while line and line[-1] != entry.now:
                    line.pop()
                line = line or [entry.now]
        return line


def read(models: Path) -> History:
    """Read the history of a models folder; empty if the file is missing or cannot be read."""
    with contextlib.suppress(OSError):
        return _read(models)
    return History()


def _read(models: Path) -> History:
    """Read the history like `read`, but raise OSError; invalid lines are skipped."""
    try:
        lines = (models / HISTORY).read_bytes().splitlines()
    except FileNotFoundError:
        return History()
    entries = []
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            entries.append(_decoder.decode(line))
    return History(tuple(entries))


def append(models: Path, entry: HistoryEntry) -> None:
    """Add an entry durably; readers see the file before or after the change.

    Raises:
        OSError: the file cannot be written, or cannot be read; it must not be replaced by one line.
    """
    entries = [*_read(models).entries, entry][-MAX_ENTRIES:]
    write_whole(models / HISTORY, b"".join(msgspec.json.encode(each) + b"\n" for each in entries))


class CachedHistory:
    """Current history of a models folder, read again only if the file was replaced."""

    def __init__(self, models: Path) -> None:
        self._path = models / HISTORY
        self._seen: tuple[int, int] | None = None
        self._history = History()

    def read(self) -> History:
        """Return the history; about 2 µs without a change. On a read error, return the last one."""
        with contextlib.suppress(OSError):
            seen = self._stamp()
            if seen != self._seen:
                self._history = _read(self._path.parent)
                self._seen = seen
        return self._history

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns
