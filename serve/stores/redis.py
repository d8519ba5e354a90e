"""Store for several machines: a Redis or Valkey server, one key per viewer, one MGET per batch."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import redis

from serve.contract.errors import StoreMissing, StoreUnavailable, TabrankError
from serve.features.slots import Entity
from serve.stores.fencing import FencingEpoch, check_seq
from serve.stores.protocol import LOAD, Changes, Dump, Packed, decoded, encoded, shown
from serve.stores.redis_client import connect
from serve.stores.redis_dump import CHUNK, RedisDump, chunks, pattern
from serve.stores.redis_scripts import BEAT, COMMIT, CREATE, READ, REPLACE, STAGE, TAKE_EPOCH, TRIM, digest

log = logging.getLogger("tabrank")
FORMAT = b"2"
# Limits the removed candidates that the store remembers. Beyond it, the store forgets the oldest
# half, but none of the newest commit. A reader that missed a removal must read everything again
# (see `Changes`).
MAX_REMOVED = 10_000


class RedisStore:
    """`Store` at a `redis://` or `rediss://` address; `name` identifies surface and state schema.

    Every key begins with `tabrank:{name}:`, so that a cluster keeps all keys on one node. In the
    list, G is the generation, which changes when the whole content is replaced:

    - `meta`: a hash of origin, id (of the content: a replacement gets a new one), format, epoch,
      `token` (the writer's), seq, floor, generation, the last generation assigned, and the
      note
    - `now`: generation, seq and id again as one value, so that an MGET of viewers includes them
    - `beat`: the writer's last heartbeat
    - `journal`: a stream whose ids are the numbers
    - `G:v:ID`: a viewer's row
    - `G:rows`: rows of candidates (a hash)
    - `G:order`, `G:removed`: numbers of all changes and of removals (sorted sets)

    A commit is one atomic script; up to some ten thousand rows it stays below the timeout. A
    replacement writes chunks into a new generation, and one script then switches to it. The next
    replacement deletes the rows that an interrupted one left.

    Durability depends on the server. With `appendonly yes` and `appendfsync always` a commit is on
    disk when the call returns. With `everysec` a crash of the machine loses the last one or two
    seconds. Without `appendonly` it loses everything since the last snapshot. A replica that takes
    over may lack the last commits: readers then reread everything, and the writer is fenced or its
    numbers are ahead.
    """

    def __init__(self, url: str, name: str, *, writable: bool) -> None:
        self._name = name
        self._prefix = b"tabrank:{%s}:" % name.encode()
        self._meta = self._prefix + b"meta"
        self._epoch = FencingEpoch(writable=writable)
        self._writing = threading.Lock()
        # The dumps that are being read.
        self._dumps: list[RedisDump] = []
        # The name under which the server's `CLIENT LIST` shows a writer, as long as the process
        # lives.
        self._writer = f"tabrank:{name}:writer"
        self._client: redis.Redis | None = connect(url, self._writer if writable else None)
        self._where = shown(url)
        self._generation = b""
        # The id of the content that was read from 0, and whose changes are read since.
        self._id = b""
        try:
            if writable:
                self._create()
            self._check_format()
        except BaseException:
            self.close()
            raise

    def origin(self) -> str:
        """See `Store`."""
        with self._server() as server:
            return bytes(server.execute_command("HGET", self._meta, b"origin") or b"").decode()

    def seq(self) -> int:
        """See `Store`."""
        with self._server() as server:
            return int(self._present(server.execute_command("HGET", self._meta, b"seq")))

    def read(self, ids: Sequence[str], since: int) -> tuple[list[bytes | None], Changes]:
        """See `Store`. In the usual case, in which no candidate changed, this is one MGET."""
        with self._server() as server:
            if since and self._id:
                (_, seq, id_), beat, rows = self._mget(server, ids)
                if id_ == self._id and int(seq) == since:
                    return rows, Changes(since, {}, int(beat or 0))
            known = self._id if since else b""
            read = self._run(server, READ, since, known, *map(encoded, ids))
        id_, seq, viewers, names, changed, beat = self._present(read)
        if not known:
            self._id = id_
        found = zip(map(decoded, names), changed, strict=True)
        return viewers, Changes(int(seq), {name: row or b"" for name, row in found}, int(beat or 0))

    def note(self) -> bytes:
        """See `Store`."""
        with self._server() as server:
            return bytes(server.execute_command("HGET", self._meta, b"note") or b"")

    def viewers(self, cursor: bytes, limit: int) -> tuple[bytes, list[tuple[str, bytes]]]:
        """See `Store`. The cursor is that of SCAN, which counts all keys of the server."""
        with self._server() as server:
            prefix = self._prefix + self._mget(server, [])[0][0] + b":v:"
            following, keys = server.scan(int(cursor or 0), pattern(prefix, b"*"), limit)
            rows = server.execute_command("MGET", *keys) if keys else []
        found = zip(keys, rows, strict=True)
        next_cursor = b"%d" % following if following else b""
        return next_cursor, [(decoded(key[len(prefix) :]), row) for key, row in found if row]

    def num_bytes(self) -> int:
        """See `Store`."""
        with self._server() as server:
            return int(server.execute_command("INFO", "memory").get("used_memory", 0))

    def journal(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """See `Store`."""
        with self._server() as server:
            entries = server.execute_command(
                "XRANGE", self._prefix + b"journal", f"{after + 1}-0", "+", "COUNT", limit
            )
            if not entries:
                self._present(server.execute_command("EXISTS", self._meta))
        return [(int(number.partition(b"-")[0]), fields[b"e"]) for number, fields in entries]

    @contextmanager
    def dump(self) -> Iterator[Dump]:
        """See `Store`. During a dump, each commit of this handle takes one more MGET.

        A commit of another handle ends the dump.
        """
        with self._writing, self._server() as server:
            now = self._mget(server, [])[0]
            _, seq, _, names, rows, _ = self._present(self._run(server, READ, 0, b""))
            dump = RedisDump(self._prefix + now[0] + b":v:", now)
            self._dumps.append(dump)
        candidates = [(name, row) for name, row in zip(names, rows, strict=True) if row]
        try:
            yield Dump(int(seq), self._dumped(dump, candidates))
        finally:
            self._dumps.remove(dump)

    def _dumped(
        self, dump: RedisDump, candidates: Iterable[tuple[bytes, bytes]]
    ) -> Iterator[tuple[Entity, str, bytes]]:
        with self._server() as server:
            for name, row in candidates:
                yield "candidate", decoded(name), row
            for name, row in dump.rows(server):
                yield "viewer", decoded(name), row
            with self._writing:
                rest = dump.rest()
                now = self._mget(server, [])[0]
            if now != dump.now:
                raise StoreUnavailable(f"another writer changed the store at {self._where} during its dump")
            for name, row in rest:
                yield "viewer", decoded(name), row

    def refuse_writer(self, busy: str) -> None:
        """See `Store`. The permission is the one for `CLIENT LIST`."""
        with self._server() as server:
            clients = server.client_list()
            database = str(server.get_connection_kwargs().get("db", 0))
        if any((client["name"], client["db"]) == (self._writer, database) for client in clients):
            raise TabrankError(busy)

    def take_epoch(self) -> int:
        """See `Store`."""
        self._epoch.require_writable()
        # A replica of the server that takes over may lack the last epoch and give it out again. The
        # token tells the two apart.
        token = secrets.token_hex(8).encode()
        with self._writing, self._server() as server:
            return self._epoch.take(token, int(self._present(self._run(server, TAKE_EPOCH, token))))

    def commit(self, seq: int, viewers: Packed, candidates: Packed, journal: bytes = b"") -> None:
        """See `Store`. The server's settings determine the durability."""
        with self._writing, self._server() as server:
            token, _ = self._epoch.held()
            for dump in self._dumps:
                dump.keep(server, map(encoded, viewers))
            changed = chain(viewers.items(), candidates.items())
            rows = chain.from_iterable((encoded(id_), row) for id_, row in changed)
            found = self._run(server, COMMIT, token, seq, journal, MAX_REMOVED, 2 * len(viewers), *rows)
            self._check(found, seq)
            for dump in self._dumps:
                dump.now[1] = b"%d" % seq

    def beat(self) -> None:
        """See `Store`."""
        with self._writing, self._server() as server:
            token, _ = self._epoch.held()
            self._check(self._run(server, BEAT, token))

    def replace(self, seq: int, viewers: Packed, candidates: Packed, note: bytes = b"") -> None:
        """See `Store`. The server's settings determine the durability."""
        with self._writing, self._server() as server:
            token, _ = self._epoch.held()
            found = self._run(server, STAGE, token)
            self._check(found)
            generation = found[3]
            at = b"%s%d:" % (self._prefix, generation)

            def write(pairs: Iterable[tuple[object, object]], *command: object) -> None:
                for chunk in chunks(pairs):
                    server.execute_command(*command, *chain.from_iterable(chunk))

            write(((at + b"v:" + encoded(id_), row) for id_, row in viewers.items() if row), "MSET")
            rows = {encoded(id_): row for id_, row in candidates.items() if row}
            write(rows.items(), "HSET", at + b"rows")
            write(((seq, id_) for id_ in rows), "ZADD", at + b"order")
            new_id = secrets.token_hex(8)
            self._check(self._run(server, REPLACE, token, seq, generation, note, new_id))
            try:
                self._delete_before(server, generation)
            # The new rows are in use; the next replacement deletes the old ones.
            except (redis.RedisError, OSError) as error:
                log.warning("the old rows of the store at %s are not deleted yet: %s", self._where, error)

    def trim(self, through: int) -> None:
        """See `Store`."""
        with self._writing, self._server() as server:
            token, _ = self._epoch.held()
            self._check(self._run(server, TRIM, token, through + 1))

    def close(self) -> None:
        """See `Store`."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _mget(
        self, server: redis.Redis, ids: Sequence[str]
    ) -> tuple[list[bytes], bytes | None, list[bytes | None]]:
        """Return [generation, number, id], the heartbeat and the rows, from one atomic MGET."""
        names = [encoded(id_) for id_ in ids]
        while True:
            # Read the attribute only once, because other threads change it too.
            generation = self._generation
            at = self._prefix + generation + b":v:"
            own = self._prefix + b"now", self._prefix + b"beat"
            found = server.execute_command("MGET", *own, *[at + name for name in names])
            now = self._present(found[0]).split(b" ")
            if now[0] == generation:
                return now, found[1], found[2:]
            self._generation = now[0]

    def _create(self) -> None:
        with self._server() as server:
            self._run(server, CREATE, secrets.token_hex(8), FORMAT)
            try:
                info = server.execute_command("INFO")
            # Some servers forbid INFO.
            except redis.ResponseError:
                return
        if not info.get("aof_enabled"):
            log.warning(
                "the store at %s has appendonly off: when the server ends, commits since its last snapshot are lost; "
                "set `appendonly yes`",
                self._where,
            )
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            log.warning(
                "the store at %s evicts rows when memory is short (maxmemory-policy %s); set `noeviction`",
                self._where,
                policy,
            )

    def _check_format(self) -> None:
        with self._server() as server:
            written, generation = server.execute_command("HMGET", self._meta, b"format", b"generation")
        self._generation = self._present(generation)
        if written != FORMAT:
            raise StoreUnavailable(
                f"the store {self._name} at {self._where} has format {written!r}, not {FORMAT!r}; delete its keys "
                f"{self._prefix.decode()}* and run {LOAD} again"
            )

    def _delete_before(self, server: redis.Redis, generation: int) -> None:
        """Delete the viewers of earlier generations; later ones may be in use."""
        for keys in chunks(server.scan_iter(pattern(self._prefix, b"[0-9]*:*"), CHUNK)):
            old = [key for key in keys if int(key[len(self._prefix) :].partition(b":")[0]) < generation]
            if old:
                server.execute_command("UNLINK", *old)

    @contextmanager
    def _server(self) -> Iterator[redis.Redis]:
        if self._client is None:
            raise StoreUnavailable(f"the store at {self._where} is closed; open it again")
        try:
            yield self._client
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailable(f"the store at {self._where} cannot be used: {error}") from error

    def _run(self, server: redis.Redis, script: str, *arguments: object) -> Any:
        # redis-py's own scripts do the same, but take 12 µs more per call.
        try:
            return server.execute_command("EVALSHA", digest(script), 1, self._prefix, *arguments)
        # A restarted server has no cached scripts.
        except redis.exceptions.NoScriptError:
            return server.execute_command("EVAL", script, 1, self._prefix, *arguments)

    def _present(self, found: Any) -> Any:
        """Return the answer of a command; an empty one means that the store does not exist."""
        if not found:
            raise StoreMissing(f"there is no store {self._name} at {self._where}; make it with {LOAD}")
        return found

    def _check(self, found: Any, seq: int | None = None) -> None:
        """Check a script's answer of token, epoch and number; raise as `commit` does."""
        token, epoch, stored = self._present(found)[:3]
        self._epoch.check(token, int(epoch))
        if seq is not None:
            check_seq(seq, int(stored))
