"""What was done with the versions in a models folder, and what follows from it: the file `HISTORY` beside them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec

from serve.durable import put

HISTORY = "HISTORY"
MAX_ENTRIES = 1_000  # the oldest are forgotten

Action = Literal["promote", "rollback", "canary", "end"]


class Entry(msgspec.Struct, frozen=True):
    """One thing that was done with a version; `was` and `now` are what was current before and after."""

    at_ms: int
    action: Action  # canary begins one, end ends it by hand
    version: str
    was: str | None
    now: str | None
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
        line = self._line
        below = line[:-1] if line and line[-1] == current else line
        for version in reversed(below):
            gone = published is not None and version not in published
            if version != current and version not in self.rolled_back and not gone:
                return version
        return None

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
                line += [v for v in (entry.was, entry.version) if v and v not in line[-1:]]
            elif entry.action == "rollback" and entry.now != entry.was and entry.now:
                while line and line[-1] != entry.now:
                    line.pop()
                line = line or [entry.now]
        return line


def read(models: Path) -> History:
    """The history of a folder; empty where there is none. A line that cannot be read is left out."""
    try:
        lines = (models / HISTORY).read_bytes().splitlines()
    except OSError:
        return History()
    entries = []
    for line in lines:
        try:
            entries.append(_decoder.decode(line))
        except msgspec.DecodeError:
            continue
    return History(tuple(entries))


def append(models: Path, entry: Entry) -> None:
    """Add an entry, on disk when it returns; readers see the file before or after. Raises OSError."""
    entries = [*read(models).entries, entry][-MAX_ENTRIES:]
    draft = models / f".{HISTORY}.partial"
    draft.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in entries))
    put(draft, models / HISTORY)


class Followed:
    """The history as it is now, read again only where the file is another one."""

    def __init__(self, models: Path) -> None:
        self._path = models / HISTORY
        self._seen: tuple[int, int] | None = None
        self._history = History()

    def read(self) -> History:
        """The history; about 2 µs where nothing changed."""
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_mtime_ns)
        except OSError:
            seen = None
        if seen != self._seen:
            self._seen, self._history = seen, read(self._path.parent)
        return self._history
