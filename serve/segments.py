"""The served log: the journal's records as Parquet segments in the canonical form, one folder a table."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.durable import put
from serve.journal import numbered
from serve.log import ARROW
from serve.records import Candidate, Ended, Entry, Event, Exposure, Forget, Viewer, event_key, exposure_key
from serve.strict import refuse_file
from serve.surface import Surface

Numbered = tuple[int, int, Any]
"""A record's number, when it was received in ms, and the record."""
DIGITS = 20  # of a segment's name
STRINGS = pa.list_(pa.string())


class Segments:
    """The folder of one served log.

    A segment is named by the number of its first record and written whole or not at all. Where a process died
    between writing a segment and trimming the journal, the next one writes the segment again, longer.
    """

    def __init__(self, folder: Path, surface: Surface) -> None:
        refuse_file(folder)
        self.folder = folder
        self._surface = surface

    def write(self, entries: Sequence[tuple[int, Entry]]) -> None:
        """Write journal entries as one segment of each table that they have records of.

        Raises:
            OSError: the disk is full or the folder cannot be written; what is there stays as it was.
        """
        records = list(_numbered(entries))
        first = records[0][0]
        for name, kinds, columns in self._tables():
            rows = [row for row in records if isinstance(row[2], kinds)]
            if rows:
                self._write(name, first, pa.table(columns(rows)))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Alone with the files: of a rollout's two writers the one that lost the lease must not write last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def recent_keys(self, num: int, after: int = 0) -> list[str]:
        """By what the newest events and exposures are known, the last ones last.

        `num` of each, or a few more; of the records beyond the number `after`, and perhaps some before it.
        """
        keys: list[str] = []
        for name, column, as_key in (
            ("events", "id", event_key),
            ("exposures", "request_id", exposure_key),
        ):
            parts: list[list[str]] = []
            for path in reversed(segments(self.folder, name)):
                parts.append(pq.read_table(path, columns=[column])[column].to_pylist())
                if sum(map(len, parts)) >= num or int(path.stem) <= after:
                    break
            keys += map(as_key, chain.from_iterable(reversed(parts)))
        return keys

    def last_seq(self) -> int:
        """The number of the last record in any segment; 0 where there is none."""
        last = 0
        for name, _, _ in self._tables():
            for path in segments(self.folder, name)[-1:]:
                last = max(last, last_seq(path))
        return last

    def _write(self, name: str, first: int, table: pa.Table) -> None:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{first:0{DIGITS}d}.parquet"
        draft = folder / f".{path.name}.{os.getpid()}.partial"
        try:
            pq.write_table(table, draft, compression="zstd")
            put(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    def _tables(self) -> tuple[tuple[str, tuple[type, ...], Callable[[list[Numbered]], dict[str, Any]]], ...]:
        return (
            ("viewers", (Viewer, Forget), self._viewers),
            ("candidates", (Candidate, Ended), self._candidates),
            ("exposures", (Exposure,), self._exposures),
            ("events", (Event,), _events),
        )

    def _viewers(self, rows: list[Numbered]) -> dict[str, Any]:
        ids = [record.viewer if isinstance(record, Forget) else record.id for _, _, record in rows]
        return {"id": pa.array(ids, pa.string())} | self._upserts("viewer", rows)

    def _candidates(self, rows: list[Numbered]) -> dict[str, Any]:
        ends = [getattr(record, "ends_ms", None) for _, _, record in rows]
        return (
            {"id": pa.array([record.id for _, _, record in rows], pa.string())}
            | self._upserts("candidate", rows)
            | {"ends_ms": pa.array(ends, pa.int64())}
        )

    def _upserts(self, owner: str, rows: list[Numbered]) -> dict[str, Any]:
        """`stated` names the fields that a row sets, `removed` says that its id was dropped."""
        fields = [getattr(record, "fields", {}) for _, _, record in rows]
        declared = self._surface.fields[owner].items()
        columns = {
            name: pa.array([_plain(values.get(name), field.type) for values in fields], ARROW[field.type])
            for name, field in declared
        }
        removed = [isinstance(record, Forget | Ended) for _, _, record in rows]
        return columns | {
            "ts_ms": pa.array([record.ts_ms for _, _, record in rows], pa.int64()),
            "stated": pa.array([list(values) for values in fields], STRINGS),
            "removed": pa.array(removed, pa.bool_()),
            **_numbers(rows),
        }

    def _exposures(self, rows: list[Numbered]) -> dict[str, Any]:
        records: list[Exposure] = [record for _, _, record in rows]
        context = self._surface.fields["context"].items()
        fields = [(name, ARROW[field.type]) for name, field in context]
        lengths = [len(record.candidates) for record in records]
        shown = pa.array(list(chain.from_iterable(record.candidates for record in records)), pa.string())
        columns = {
            name: pa.array([getattr(record, name) for record in records], pa.string())
            for name in ("request_id", "viewer", "experiment", "arm", "model", "rung", "traffic")
        }
        if fields:
            columns["context"] = pa.array([record.context for record in records], pa.struct(fields))
        stated = [json.dumps(record.stated) if record.stated else None for record in records]
        scores = np.frombuffer(b"".join(record.scores for record in records), np.float32)
        return columns | {
            "ts_ms": pa.array([record.ts_ms for record in records], pa.int64()),
            "candidates": _lists(lengths, shown),
            "scores": _lists(lengths, pa.array(scores, from_pandas=True)),
            "propensity": pa.array([record.propensity for record in records], pa.list_(pa.float64())),
            "stated": pa.array(stated, pa.string()),
            "seen_seq": pa.array([record.seen_seq for record in records], pa.int64()),
            "numeric": _matrices([record.numeric for record in records], np.float32),
            "category": _matrices([record.category for record in records], np.uint64),
            **_numbers(rows),
        }


def segments(log: Path, table: str) -> list[Path]:
    """A table's segments in order; what has another name in its folder is not the service's."""
    return sorted((log / table).glob(f"{'[0-9]' * DIGITS}.parquet"))


def last_seq(path: Path) -> int:
    """The greatest number in a segment, as its footer says."""
    metadata = pq.read_metadata(path)
    column = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == "seq")
    groups = (metadata.row_group(i).column(column) for i in range(metadata.num_row_groups))
    return max(int(group.statistics.max) for group in groups)


def _events(rows: list[Numbered]) -> dict[str, Any]:
    records: list[Event] = [record for _, _, record in rows]
    columns = {
        name: pa.array([getattr(record, name) for record in records], pa.string())
        for name in ("id", "viewer", "candidate", "kind", "request_id")
    }
    return columns | {
        "ts_ms": pa.array([record.ts_ms for record in records], pa.int64()),
        "value": pa.array([record.value for record in records], pa.float64()),
        **_numbers(rows),
    }


def _numbered(entries: Sequence[tuple[int, Entry]]) -> Iterator[Numbered]:
    for last, entry in entries:
        for seq, record in numbered(last, entry):
            yield seq, entry.received_ms, record


def _numbers(rows: list[Numbered]) -> dict[str, Any]:
    return {
        "seq": pa.array([seq for seq, _, _ in rows], pa.int64()),
        "received_ms": pa.array([received_ms for _, received_ms, _ in rows], pa.int64()),
    }


def _lists(lengths: Sequence[int], values: pa.Array) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _matrices(parts: Sequence[bytes | None], dtype: Any) -> pa.Array:
    arrays = [None if part is None else np.frombuffer(part, dtype) for part in parts]
    return pa.array(arrays, pa.list_(pa.from_numpy_dtype(dtype)))


def _plain(value: Any, kind: str) -> Any:
    return int(value) if kind == "time" and value is not None else value
