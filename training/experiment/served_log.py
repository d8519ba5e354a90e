"""Served log as arrays: exposures of known viewers, and events.

The log is read in batches. Ids become 64-bit hashes, so that an exposure takes about 40 bytes
whatever the length of its ids. The probability that two of ten million ids collide is 3e-6.
Letters: N exposures, E events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.log.reader import MAY_BE_EMPTY, READS

I8 = NDArray[np.int8]
I16 = NDArray[np.int16]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
# Code of null.
NONE = -1
_BETWEEN = "\0"
WANTED = {
    "exposures": {"request_id": pa.string(), "ts_ms": pa.int64(), "viewer": pa.string()},
    "events": {"id": pa.string(), "ts_ms": pa.int64(), "viewer": pa.string(), "candidate": pa.string()},
}
OPTIONAL = {
    "exposures": {
        **dict.fromkeys(("experiment", "arm", "rung", "model", "traffic"), pa.string()),
        "share": pa.float64(),
        "latency_ms": pa.float32(),
        "degraded": pa.list_(pa.string()),
        "seq": pa.int64(),
    },
    "events": {"kind": pa.string(), "request_id": pa.string(), "seq": pa.int64()},
}
T = TypeVar("T")
Table = TypeVar("Table", "Exposures", "Events")


@dataclass(frozen=True)
class Exposures:
    """Live exposures of known viewers in order of time, without duplicates.

    All arrays are [N]; codes refer to the tuple of the plural name. `arm` is NONE outside the
    experiment; `other` is NONE within it and outside all experiments. `share` is the arm's share
    at that time and `latency_ms` the duration of the answer, NaN if the log lacks them.
    `degraded` are codes of `reasons`, NONE without one; several reasons are joined. `model`
    is NONE if no model ranked. `others` are (experiment, arm). `num_test`, `num_anonymous` and
    `num_repeated` count the exposures left out.
    """

    viewer: U64
    ts_ms: I64
    request: U64
    arm: I8
    share: F64
    latency_ms: F32
    rung: I8
    degraded: I16
    other: I16
    model: I16
    arms: tuple[str, ...]
    rungs: tuple[str, ...]
    reasons: tuple[str, ...]
    others: tuple[tuple[str, str], ...]
    models: tuple[str, ...]
    num_test: int = 0
    num_anonymous: int = 0
    num_repeated: int = 0

    def __len__(self) -> int:
        return len(self.ts_ms)

    def rows(self, rows: NDArray[Any]) -> Exposures:
        """Return the exposures at these indices, or with these flags [N]."""
        return _rows(self, rows)


@dataclass(frozen=True)
class Events:
    """Events [E] of known viewers in order of time, without duplicates.

    `request` is 0 if the event names none; `kind` are codes of `kinds`.
    """

    viewer: U64
    ts_ms: I64
    candidate: U64
    request: U64
    kind: I8
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ts_ms)

    def of(self, kind: str) -> NDArray[np.bool_]:
        """Return flags [E] of the events of this kind."""
        return np.asarray(self.kind == (self.kinds.index(kind) if kind in self.kinds else len(self.kinds)))


def read_exposures(log: Path, experiment: str) -> Exposures:
    """Read the live exposures of a log, within and outside the experiment.

    Raises:
        TabrankError: the log does not exist, or it holds no exposure of the experiment.
    """
    return _retry(lambda: _exposures(log, experiment))


def read_events(log: Path) -> Events:
    """Read the events of a log.

    Raises:
        TabrankError: the log does not exist.
    """
    return _retry(lambda: _events(log))


def hashed(ids: Sequence[str | None]) -> U64:
    """Return the hash of each id [N], 0 for None."""
    return _hashes(pa.array(ids, pa.string()))


def _exposures(log: Path, experiment: str) -> Exposures:
    arms, rungs, reasons, others, models = _Codes(), _Codes(), *(_Codes(np.int16) for _ in range(3))
    names: set[str | None] = set()
    parts: list[dict[str, NDArray[Any]]] = []
    num_test = num_anonymous = 0
    for batch in _batches(log, "exposures"):
        live = pc.fill_null(pc.not_equal(batch["traffic"], "test"), True)
        known = pc.and_(live, pc.is_valid(batch["viewer"]))
        num_live = pc.sum(live).as_py() or 0
        num_test += len(batch) - num_live
        num_anonymous += num_live - (pc.sum(known).as_py() or 0)
        batch = batch.filter(known)
        names.update(pc.unique(batch["experiment"]).to_pylist())
        ours = pc.fill_null(pc.equal(batch["experiment"], experiment), False)
        parts.append(
            {
                "viewer": _hashes(batch["viewer"]),
                "ts_ms": _whole(batch["ts_ms"]),
                "request": _hashes(batch["request_id"]),
                "arm": arms(pc.if_else(ours, batch["arm"], None)),
                "share": batch["share"].to_numpy(zero_copy_only=False).astype(np.float64),
                "latency_ms": batch["latency_ms"].to_numpy(zero_copy_only=False).astype(np.float32),
                "rung": rungs(batch["rung"]),
                "degraded": reasons(_joined(batch["degraded"])),
                "other": others(pc.if_else(ours, None, _with_arm(batch))),
                "model": models(batch["model"]),
                "seq": _whole(batch["seq"]),
            }
        )
    if experiment not in names:
        known_names = ", ".join(sorted(filter(None, names))) or "none"
        raise TabrankError(
            f"--experiment {experiment}: {log} holds no exposure of it; its experiments are {known_names}"
        )
    columns = _concatenated(parts)
    seq = columns.pop("seq")
    exposures = Exposures(
        **columns,
        arms=tuple(arms.known),
        rungs=tuple(rungs.known),
        reasons=tuple(reasons.known),
        others=tuple(_apart(name) for name in others.known),
        models=tuple(models.known),
        num_test=num_test,
        num_anonymous=num_anonymous,
    )
    keep = _first(seq, exposures.request, exposures.ts_ms)
    return replace(exposures.rows(keep), num_repeated=len(seq) - len(keep))


def _with_arm(batch: pa.RecordBatch) -> pa.Array:
    """Return each exposure's experiment and arm in one string; null outside experiments."""
    return pc.binary_join_element_wise(batch["experiment"], pc.fill_null(batch["arm"], ""), _BETWEEN)


def _joined(lists: pa.Array) -> pa.Array:
    """Return each list in one string; null if it is empty."""
    joined = pc.binary_join(lists, " and ")
    return pc.if_else(pc.fill_null(pc.equal(joined, ""), True), None, joined)


def _apart(name: str) -> tuple[str, str]:
    experiment, _, arm = name.partition(_BETWEEN)
    return experiment, arm


def _events(log: Path) -> Events:
    kinds = _Codes()
    parts = []
    for batch in _batches(log, "events"):
        batch = batch.filter(pc.is_valid(batch["viewer"]))
        hashes = {name: _hashes(batch[name]) for name in ("viewer", "candidate", "request_id", "id")}
        parts.append(hashes | {"ts_ms": _whole(batch["ts_ms"]), "kind": kinds(batch["kind"])})
    if not parts:
        none = np.zeros(0, np.uint64)
        return Events(none, none.astype(np.int64), none, none, none.astype(np.int8), ())
    columns = _concatenated(parts)
    ids, request = columns.pop("id"), columns.pop("request_id")
    events = Events(**columns, request=request, kinds=tuple(kinds.known))
    return _rows(events, _first(np.zeros(len(ids), np.int64), ids, events.ts_ms))


def _concatenated(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rows(table: Table, rows: NDArray[Any]) -> Table:
    """Return these rows of all arrays."""
    arrays = {name: value for name, value in vars(table).items() if isinstance(value, np.ndarray)}
    return replace(table, **{name: value[rows] for name, value in arrays.items()})


def _first(seq: I64, id_: U64, ts_ms: I64) -> I64:
    """Return the rows to keep in order of time: one for each number, then one for each id.

    Segments may hold a number twice while they are merged.
    """
    if (seq > 0).all() and (seq[1:] > seq[:-1]).all():
        # The service numbered the records itself, without duplicate numbers or ids.
        rows = np.arange(len(seq))
    else:
        rows = np.flatnonzero(~pd.Series(id_).duplicated().to_numpy())
    return np.asarray(rows[np.argsort(ts_ms[rows], kind="stable")], np.int64)


class _Codes:
    """Encoder of names as codes, in order of first occurrence."""

    def __init__(self, kind: type[np.signedinteger[Any]] = np.int8) -> None:
        self.known: dict[str, int] = {}
        self._kind = kind

    def __call__(self, column: pa.Array) -> NDArray[Any]:
        encoded = column.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        codes = np.array([self.known.setdefault(name, len(self.known)) for name in names] or [NONE])
        most = np.iinfo(self._kind).max
        if len(self.known) > most:
            raise TabrankError(
                f"the log holds over {most:,} arms, rungs, kinds of event or models, such as {names[-1]!r}"
            )
        at = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
        return np.where(encoded.is_null().to_numpy(zero_copy_only=False), NONE, codes[at]).astype(self._kind)


def _hashes(column: pa.Array) -> U64:
    # Hash each distinct value once, because viewers recur within a batch.
    encoded = column.dictionary_encode()
    if not len(encoded.dictionary):
        return np.zeros(len(column), np.uint64)
    values = np.array(encoded.dictionary.to_pylist(), object)
    hashes = pd.util.hash_array(values, categorize=False)
    at = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(encoded.is_null().to_numpy(zero_copy_only=False), 0, hashes[at]).astype(np.uint64)


def _whole(column: pa.Array) -> I64:
    return np.asarray(column.fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def _batches(log: Path, name: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a table with the columns to read; missing optional columns are null."""
    paths = [path for path in (log / f"{name}.parquet", log / name) if path.exists()]
    if not paths and not (name in MAY_BE_EMPTY and (log / "exposures").is_dir()):
        raise TabrankError(
            f"--log {log}: holds no table {name}; give the folder that `log` in cluster.yaml names"
        )
    columns = WANTED[name] | OPTIONAL[name]
    for path in paths:
        for file in ds.dataset(path, format="parquet", exclude_invalid_files=False).files:
            with pq.ParquetFile(file) as opened:
                there = [column for column in columns if column in opened.schema_arrow.names]
                for column in WANTED[name]:
                    if column not in there:
                        raise TabrankError(f"{file}: the column {column!r} is missing")
                for batch in opened.iter_batches(columns=there):
                    yield pa.record_batch(
                        {
                            column: batch[column].cast(wanted)
                            if column in there
                            else pa.nulls(len(batch), wanted)
                            for column, wanted in columns.items()
                        }
                    )


def _retry(read: Callable[[], T]) -> T:
    """Call `read`, again if a segment was merged or deleted during the call."""
    for _ in range(READS - 1):
        try:
            return read()
        except (pa.ArrowInvalid, OSError):
            continue
    try:
        return read()
    except (pa.ArrowInvalid, OSError) as error:
        raise TabrankError(f"the log is not readable as Parquet: {str(error).splitlines()[0]}") from None
