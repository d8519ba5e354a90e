"""A dump of a Redis store: SCAN tells of no single moment, so what changes meanwhile is put back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import redis

CHUNK = 1000  # keys that one command reads


@dataclass(eq=False)
class RedisDump:
    """The viewers of one commit, read while its handle goes on committing.

    Before a commit changes a viewer, the row that it had is kept here, and told in place of what SCAN finds. A key
    that is there from the first SCAN to the last is found; one that is not was changed, and so is kept.
    """

    prefix: bytes  # of the keys of viewers
    now: list[bytes]  # generation, number and id of the store, as this handle's own commits leave them
    kept: dict[bytes, bytes | None] = field(default_factory=dict)
    _told: set[bytes] = field(default_factory=set)

    def keep(self, server: redis.Redis, names: Iterable[bytes]) -> None:
        """Remember the rows of viewers that a commit is about to change."""
        keys = [key for key in (self.prefix + name for name in names) if key not in self.kept]
        if keys:
            self.kept.update(zip(keys, server.execute_command("MGET", *keys), strict=True))

    def rows(self, server: redis.Redis) -> Iterator[tuple[bytes, bytes]]:
        """Ids and rows that SCAN finds, each once."""
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", self.prefix) + b"*"
        cursor: int | bytes = 0
        while True:
            cursor, found = server.execute_command("SCAN", cursor, "MATCH", pattern, "COUNT", CHUNK)
            keys = [key for key in dict.fromkeys(found) if key not in self._told]
            self._told.update(keys)
            rows = server.execute_command("MGET", *keys) if keys else []
            for key, row in zip(keys, rows, strict=True):
                as_it_was = self.kept.get(key, row)  # looked up after the row was read
                if as_it_was:
                    yield key[len(self.prefix) :], as_it_was
            if not int(cursor):
                return

    def rest(self) -> list[tuple[bytes, bytes]]:
        """Those that SCAN did not find, since they were removed meanwhile."""
        kept = self.kept.items()
        return [(key[len(self.prefix) :], row) for key, row in kept if row and key not in self._told]
