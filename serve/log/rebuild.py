"""Rebuild the state from a log, beginning with its newest snapshot or with its first record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from serve.features.common_state import common_cells, is_common, view
from serve.features.rows import Schema, State
from serve.features.slots import ENTITIES
from serve.log.join_coverage import check_joins
from serve.log.replay import apply
from serve.log.segments import MAX_SEQ, log_end
from serve.log.snapshots import Snapshot, replay_snapshots, snapshots
from serve.log.stream import LogStream, join_sample

# The progress of a replay is reported this often.
REPORT_EVERY_S = 5.0
Report = Callable[[str], None]


@dataclass
class Rebuilt:
    """State that was rebuilt from a log's records.

    `seq` is the number of the last record, 0 without one. `ends_ms` is the time of the last
    exposure or event. `coverage` holds the shares that `check_joins` returned; it is empty if the
    replay began with a snapshot of this state, because too few records follow to judge.
    `since_ms` maps each feature to the time from which on the state has its records. None means all
    of them, or all that the snapshot of this state had.
    """

    state: State
    since_ms: dict[str, int | None]
    seq: int = 0
    ends_ms: int = 0
    coverage: Mapping[str, float] = field(default_factory=dict)


def rebuild(schema: Schema, folder: Path, report: Report, through: int = MAX_SEQ) -> Rebuilt:
    """Replay a log in bounded memory.

    If the log is being written, its tables must hold all records up to the number `through`.

    The replay begins with the newest snapshot of this state, or else with the first record. If
    older records were deleted and there is no such snapshot, the newest snapshot of another state
    gives what both states have in common. Everything else has only the records that are left.

    Raises:
        TabrankError: the log is invalid, nothing in it joins, or it has no beginning.
    """
    begins = replay_snapshots(folder)
    taken = [one for one in begins or snapshots(folder) if one.seq <= through]
    own = next((one for one in reversed(taken) if one.fingerprint == schema.fingerprint), None)
    built = Rebuilt(State(schema), dict.fromkeys(schema.surface.features))
    if own:
        report(f"{folder}: begins with the snapshot of {_iso(own.ts_ms)}, of record {own.seq:,}")
        _restore(built, own, schema)
    else:
        # Most viewers and candidates of a truncated log are only in its snapshots.
        fields = dict.fromkeys(ENTITIES) if begins else schema.surface.fields
        built.coverage = _checked_joins(folder, fields, report)
    if begins and not own:
        _replay_with(built, folder, taken[-1], begins[0].ts_ms, report)
    _replay(built, folder, LogStream(folder, schema.surface, built.seq or None, through), report)
    return built


def _checked_joins(folder: Path, fields: Mapping[Any, Any], report: Report) -> dict[str, float]:
    tables, share = join_sample(folder)
    what = folder if share == 1 else f"{folder}, of a sample of {share:.1%}"
    coverage = check_joins(what, tables, fields, report, is_trained_on=False)
    del tables
    # Arrow would otherwise keep some 50 MB.
    pa.default_memory_pool().release_unused()
    return coverage


def _replay_with(built: Rebuilt, folder: Path, other: Snapshot, since_ms: int, report: Report) -> None:
    """Replay what is left of a log up to another state's snapshot, and take from that what fits."""
    schema, old = built.state.schema, other.schema()
    _replay(built, folder, LogStream(folder, schema.surface, through=other.seq), report)
    _restore(built, other, old)
    features = schema.surface.features
    lacking = [name for name, kind in features.items() if not is_common(kind, schema, old)]
    built.since_ms |= dict.fromkeys(lacking, since_ms)
    if lacking:
        report(
            f"{folder}: complete: {len(features) - len(lacking)} features. From {_iso(since_ms)} on: "
            f"{', '.join(lacking)} (older records were deleted)"
        )


def _replay(built: Rebuilt, folder: Path, stream: LogStream, report: Report) -> None:
    """Apply the records of a stream, and report the progress."""
    num, reported_s = 0, time.monotonic()
    for part in stream:
        apply(part, built.state)
        built.seq = max(built.seq, part.last_seq)
        built.ends_ms = max(built.ends_ms, part.ends_ms)
        num += sum(len(table) for table in (part.viewers, part.candidates, part.exposures, part.events))
        if time.monotonic() - reported_s >= REPORT_EVERY_S:
            reported_s = time.monotonic()
            total = stream.num_flat + max(0, log_end(folder) - (stream.after or 0))
            report(f"{folder}: {num:,} of {total:,} records, up to {_iso(built.ends_ms)}")


def _restore(built: Rebuilt, snapshot: Snapshot, old: Schema) -> None:
    """Take what the state has in common with a snapshot of the schema `old`, and its ids."""
    snapshot.verify()
    state, held = built.state, {entity: set[str]() for entity in ENTITIES}
    for entity, packed in chain.from_iterable(map(snapshot.rows, ENTITIES)):
        held.get(entity, set()).update(packed)
        cells = list(common_cells(state.schema, old, entity))
        # This state may not count for the values of a field.
        if cells:
            rows, given = state.rows(entity), np.frombuffer(b"".join(packed.values()), old.layout(entity))
            at = [rows.add(name) for name in packed]
            for ours, theirs in cells:
                view(rows.table, ours)[at] = view(given, theirs)
    for entity, names in held.items():
        for name in state.rows(entity).index.keys() - names:
            state.rows(entity).drop(name)
    state.candidates.link(np.fromiter(state.candidates.index.values(), np.int64))
    built.seq, built.ends_ms = snapshot.seq, snapshot.ts_ms


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1e3, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
