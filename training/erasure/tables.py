"""Find the rows of viewers in a log's tables, and erase them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serve.features.rows import NEVER_MS
from serve.log.compaction import batches, row_groups
from serve.log.reader import table_paths
from serve.storage.atomic_files import file_draft_of, sync
from serve.storage.conversion import IDS, converted
from serve.storage.parquet import bounded_batches, data_files, readable

# Events come before exposures: if the command is interrupted, the exposures still say which
# requests are the viewers', so another attempt finds the rest.
ORDER = ("events", "exposures", "viewers")
# The columns whose values an erased row keeps, because they change the counters of candidates or
# say how the service worked. All other columns become null, also columns unknown to this release.
KEPT = {
    "exposures": [
        "candidates",
        "ts_ms",
        "received_ms",
        "seq",
        "seen_seq",
        "one_in",
        "arm",
        "model",
        "rung",
        "traffic",
    ],
    "events": ["candidate", "kind", "value", "ts_ms", "received_ms", "seq"],
}


class ErasedViewers:
    """The viewers to erase, and what `scan` finds of them in a log's tables.

    A row is theirs if it names one of them, or if it names no viewer and its request is theirs.
    """

    def __init__(self, viewers: Iterable[str]) -> None:
        self.viewers = frozenset(viewers)
        self.found: set[str] = set()
        # The request ids of their exposures and events. All of them are held in memory.
        self.requests: set[str | None] = set()
        self.shown_ms: list[int] = []
        # The time of the log's first exposure, no matter whose.
        self.first_ms = NEVER_MS
        # The key makes new ids equal for the rows of one request. It is thrown away, so afterwards
        # nobody can compute a new id from an old one.
        self._key = secrets.token_bytes(32)

    def scan(self, log: Path) -> dict[tuple[str, Path], int]:
        """Find the viewers' rows, and return their number for each (table, file) that has any.

        Raises:
            TabrankError: a file is damaged.
        """
        for name, _, table in _ids(log, "exposures", "events"):
            if name == "exposures":
                self.first_ms = min([self.first_ms, *_values(table, "ts_ms")[0]])
            for viewer, request, ts_ms in zip(*_values(table, "viewer", "request_id", "ts_ms"), strict=True):
                if viewer in self.viewers:
                    self.found.add(viewer)
                    self.requests.add(request)
                    if name == "exposures":
                        self.shown_ms.append(ts_ms)
        self.requests.discard(None)
        counts: dict[tuple[str, Path], int] = {}
        for name, path, table in _ids(log, *ORDER):
            if num := sum(self._owns(name, table)):
                counts[name, path] = counts.get((name, path), 0) + num
            if name == "viewers":
                self.found.update(self.viewers.intersection(*_values(table, "id")))
        return counts

    def erase(self, name: str, path: Path, num: int) -> Iterator[float]:
        """Rewrite a file of a table without the viewers; `num` of its rows are theirs.

        The new file replaces the old one atomically. Yields the share that is done.
        """
        meta = pq.read_metadata(path)
        if name == "viewers" and num == meta.num_rows:
            # Delete the file, as it would be empty, and Ingest cannot start with an empty segment.
            path.unlink()
            sync(path.parent)
            return
        schema = meta.schema.to_arrow_schema()
        done = 0
        target = self._without(name, schema.empty_table()).schema
        with file_draft_of(path) as draft, pq.ParquetWriter(draft, target, compression="zstd") as writer:
            for table in row_groups(batches(path), schema):
                left = self._without(name, table)
                # The last row group says where a segment ends, so no row group may be empty.
                if len(left):
                    writer.write_table(left)
                done += len(table)
                yield done / meta.num_rows

    def _owns(self, name: str, table: pa.Table) -> list[bool]:
        """Return for each row whether it is the viewers'."""
        if name == "viewers":
            return [id_ in self.viewers for id_ in _values(table, "id")[0]]
        rows = zip(*_values(table, "viewer", "request_id"), strict=True)
        return [v in self.viewers or (v is None and request in self.requests) for v, request in rows]

    def _without(self, name: str, table: pa.Table) -> pa.Table:
        """Return the table of viewers without these, and other tables with what is kept of them."""
        ids = converted(table.select([n for n in IDS[name] if n in table.column_names]), IDS[name])
        theirs = pa.array(self._owns(name, ids), pa.bool_())
        if name == "viewers":
            return table.filter(pc.invert(theirs))
        rows = pc.if_else(theirs, None, pa.array(range(len(table)), pa.int64()))
        columns = {n: table[n] if n in KEPT[name] else table[n].take(rows) for n in table.column_names}
        requests, own = _values(ids, "request_id", "id")
        new = [self._new(request) if request in self.requests else request for request in requests]
        columns["request_id"] = pa.array(new, pa.string())
        if name == "events":
            new = [self._new(id_) if t else id_ for id_, t in zip(own, theirs.to_pylist(), strict=True)]
            columns["id"] = pa.array(new, pa.string())
        before = columns.get("erased", pa.scalar(False))
        return pa.table(columns | {"erased": pc.or_(theirs, pc.fill_null(before, False))})

    def _new(self, id_: str) -> str:
        """Return the random id that replaces this id during this run of the command."""
        raw = id_.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(raw, key=self._key, digest_size=16).hexdigest()


def _ids(log: Path, *names: str) -> Iterator[tuple[str, Path, pa.Table]]:
    """Yield (table, file, rows) with up to 65,536 rows at a time, which hold only ids and times."""
    files = ((name, path) for name in names for found in table_paths(log, name) for path in data_files(found))
    for name, path in files:
        with readable(path):
            for batch in bounded_batches(path, columns={*IDS[name], "ts_ms"} - {"candidates"}):
                yield name, path, converted(pa.Table.from_batches([batch]), IDS[name])


def _values(table: pa.Table, *columns: str) -> list[list[Any]]:
    """Return the values of these columns; they are all None for a column that the table lacks."""
    known = table.column_names
    return [table[n].to_pylist() if n in known else [None] * len(table) for n in columns]
