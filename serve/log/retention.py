"""Retention: what the served log keeps, for how long, and how it goes on without the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from serve.log.compaction import compact
from serve.log.reader import TABLES
from serve.log.segments import last_seq, segments
from serve.log.snapshots import Snapshot, begin, set_begin, snapshots, write
from serve.log.throttle import Step
from serve.stores.protocol import Store

SNAPSHOTS = 4  # so many within the time that a log is kept: at most a quarter more is kept than was asked for


class Retention:
    """Sees to the files of one served log, in which records up to `keep_ms` old are kept; 0 keeps all."""

    def __init__(self, folder: Path, fingerprint: str, keep_ms: int) -> None:
        self._folder = folder
        self._fingerprint = fingerprint
        self._keep_ms = keep_ms

    def tend(self, store: Store, clock: Callable[[], int], step: Step = lambda: True) -> None:
        """Merge segments, write a snapshot where it is time, delete what is too old: by whoever has the lease.

        `clock` is the service's, in ms; `step` is called after each part of the work, and may end it.

        Raises:
            OSError, pa.ArrowException, StoreUnavailable, TabrankError: the log can be replayed as before.
        """
        taken = snapshots(self._folder)
        compact(self._folder, [snapshot.seq for snapshot in taken], step)
        if self._keep_ms and self._is_due(taken, clock()):
            write(self._folder, store, self._fingerprint, clock, step)
        if self._keep_ms:
            self._delete([s for s in taken if clock() - s.ts_ms >= self._keep_ms])

    def _is_due(self, taken: list[Snapshot], now_ms: int) -> bool:
        since_ms = taken[-1].ts_ms if taken else self._first_ms()
        if taken and taken[-1].fingerprint != self._fingerprint:
            return (
                True  # the surface's state has changed: the sooner one of its own, the more can be replayed
            )
        return since_ms is not None and now_ms - since_ms >= self._keep_ms / SNAPSHOTS

    def _first_ms(self) -> int | None:
        """When the log's first record was."""
        firsts = (segments(self._folder, name)[:1] for name in TABLES)
        times = [
            pq.read_table(path, columns=["ts_ms"])["ts_ms"][0].as_py() for (path,) in filter(None, firsts)
        ]
        return min(times, default=None)

    def _delete(self, old: list[Snapshot]) -> None:
        """Delete what the last of the old snapshots makes up for."""
        if not old:
            return
        *before, horizon = old
        if begin(self._folder) < horizon.seq:
            horizon.verify()
            set_begin(self._folder, horizon.seq)  # a replay starts with it now, whatever is there of the rest
        for name in TABLES:
            paths = segments(self._folder, name)
            for path in paths[:-1]:  # the last one stays: a log has rows in each table
                if int(path.stem) <= horizon.seq and last_seq(path) <= horizon.seq:
                    path.unlink()
        for snapshot in before:
            shutil.rmtree(snapshot.path)
