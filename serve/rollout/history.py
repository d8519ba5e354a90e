"""What was done with the versions in a models folder, and what follows from it: the file `HISTORY` beside them."""

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
MAX_ENTRIES = 1_000  # the oldest are forgotten

Action = Literal["promote", "rollback", "canary", "end"]
Version = Annotated[
    str, msgspec.Meta(pattern=f"^{VERSION.pattern}$")
]  # it names a folder, and no other place


class Entry(msgspec.Struct, frozen=True):
    """One thing that was done with a version; `was` and `now` are what was current before and after."""

    at_ms: int
    action: Action  # canary begins one, end ends it by hand
    version: Version
    was: Version | None
    now: Version | None
    by: Literal["command", "service"]
    reason: str = ""


_decoder = msgspec.json.Decoder(Entry)


@dataclass(frozen=True)
class History:
    """Entries, the oldest first."""

    entries: tuple[Entry, ...] = ()

    @cached_property
    def rolled_back(self) -> dict[str, Entry]:
        """The versions that came back and were not named again by anybody since."""
        found: dict[str, Entry] = {}
        for entry in self.entries:
            if entry.action == "rollback":
                found[entry.version] = entry
            elif entry.action in ("promote", "canary"):
                found.pop(entry.version, None)
        return found

    def previous(self, current: str | None, published: Collection[str] | None = None) -> str | None:
        """The good version that was current before this one, of those that are still published."""
        for version in reversed(self._before(current)):
            gone = published is not None and version not in published
            if version != current and version not in self.rolled_back and not gone:
                return version
        return None

    def _before(self, current: str | None) -> list[str]:
        """What is on the line before a version; all of it, where the version is not on it."""
        line = self._line  # beyond `current` is a promotion that was noted and not carried out
        places = [at for at, version in enumerate(line) if version == current]
        return line[: places[-1]] if places else line

    def promoted_ms(self, current: str | None) -> int | None:
        """When this version was promoted, where it is current by that; not where another one's rollback made it so."""
        for entry in reversed(self.entries):
            if entry.was != entry.now:
                is_it = entry.action == "promote" and entry.version == current
                return entry.at_ms if is_it else None
        return None

    @cached_property
    def _line(self) -> list[str]:
        """The versions that were current one after the other, without those that were rolled back from."""
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
    """The history of a folder; empty where there is none, or it cannot be read."""
    with contextlib.suppress(OSError):
        return _read(models)
    return History()


def _read(models: Path) -> History:
    """As `read`, but for an OSError. A line that cannot be read is left out."""
    try:
        lines = (models / HISTORY).read_bytes().splitlines()
    except FileNotFoundError:
        return History()
    entries = []
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            entries.append(_decoder.decode(line))
    return History(tuple(entries))


def append(models: Path, entry: Entry) -> None:
    """Add an entry, on disk when it returns; readers see the file before or after.

    Raises:
        OSError: it cannot be written, or what is there not be read: it is not to be replaced by one line.
    """
    entries = [*_read(models).entries, entry][-MAX_ENTRIES:]
    write_whole(models / HISTORY, b"".join(msgspec.json.encode(each) + b"\n" for each in entries))


class Followed:
    """The history as it is now, read again only where the file is another one."""

    def __init__(self, models: Path) -> None:
        self._path = models / HISTORY
        self._seen: tuple[int, int] | None = None
        self._history = History()

    def read(self) -> History:
        """The history; about 2 µs where nothing changed. Where it cannot be read, what was known goes on."""
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
