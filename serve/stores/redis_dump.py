"""Consistent dump of a Redis store's viewers, although SCAN is not atomic."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import redis

T = TypeVar("T")
# How many rows or keys one command reads, writes or deletes.
CHUNK = 1000


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items, `CHUNK` at a time."""
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def pattern(prefix: bytes, rest: bytes) -> bytes:
    """Return the pattern of keys that begin with `prefix` and continue like the pattern `rest`."""
    return re.sub(rb"([*?\[\]\\])", rb"\\\1", prefix) + rest


@dataclass(eq=False)
class RedisDump:
    """Viewers of one commit, read while the same handle makes further commits.

    Before a commit changes a viewer, its old row is kept here, and returned instead of the row that
    SCAN finds. SCAN returns every key that exists during the whole scan. Any other key was changed
    by a commit, so its old row is kept.

    Keys of viewers begin with `prefix`. `now` holds generation, number and id of the store after
    this handle's last commit.
    """

    prefix: bytes
    now: list[bytes]
    kept: dict[bytes, bytes | None] = field(default_factory=dict)
    _yielded: set[bytes] = field(default_factory=set)

    def keep(self, server: redis.Redis, names: Iterable[bytes]) -> None:
        """Keep the rows of viewers that a commit is about to change."""
        keys = [key for key in (self.prefix + name for name in names) if key not in self.kept]
        if keys:
            self.kept.update(zip(keys, server.execute_command("MGET", *keys), strict=True))

    def rows(self, server: redis.Redis) -> Iterator[tuple[bytes, bytes]]:
        """Yield the ids and rows that SCAN finds, each once."""
        for found in chunks(server.scan_iter(pattern(self.prefix, b"*"), CHUNK)):
            keys = [key for key in dict.fromkeys(found) if key not in self._yielded]
            self._yielded.update(keys)
            rows = server.execute_command("MGET", *keys) if keys else []
            for key, row in zip(keys, rows, strict=True):
                # Look up the kept row after the read, because a commit may come in between.
                old_row = self.kept.get(key, row)
                if old_row:
                    yield key[len(self.prefix) :], old_row

    def rest(self) -> list[tuple[bytes, bytes]]:
        """Return the ids and rows that SCAN did not find because they were removed meanwhile."""
        kept = self.kept.items()
        return [(key[len(self.prefix) :], row) for key, row in kept if row and key not in self._yielded]
