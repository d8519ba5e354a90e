"""The simulated world at the time at which its log ends, made to last longer: where an experiment in it begins."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.random import default_rng

from serve.contract.errors import TabrankError
from serve.contract.records import Candidate, Event, Sent
from serve.log.reader import read_table
from serve.log.replay import EVENT, UPSERT
from training.world.audience import Audience
from training.world.population import DAY_MS, MINUTE_MS, Ints
from training.world.provenance import Origin
from training.world.record import log_tables
from training.world.world import World

LAST_MS = 3 * MINUTE_MS
"""Before the end nobody comes any more: clicks and joins, all within 2.5 minutes, are of the experiment's time."""
SPACES, VISITS = 3, 4  # streams of chance beside the two of `Origin`


class Agenda:
    """What a service is still to be told, in the order in which it happens."""

    def __init__(self) -> None:
        self._ahead: list[tuple[int, int, int, Sent]] = []
        self._number = count()

    def add(self, record: Sent) -> None:
        """It happens at its `ts_ms`; attributes come before events of the same time."""
        kind = EVENT if isinstance(record, Event) else UPSERT
        heapq.heappush(self._ahead, (record.ts_ms or 0, kind, next(self._number), record))

    def before(self, ts_ms: int) -> list[Sent]:
        """What happens strictly before ts_ms and was not asked for yet."""
        due = []
        while self._ahead and self._ahead[0][0] < ts_ms:
            due.append(heapq.heappop(self._ahead)[-1])
        return due


@dataclass
class Scene:
    """A world, who is in which of its Spaces, and what happens next; all of it moves on as time does."""

    origin: Origin
    world: World
    audience: Audience
    agenda: Agenda

    @classmethod
    def after(
        cls, log: Path, days: float, seed: int, progress: Callable[[float], None] = lambda share: None
    ) -> Scene:
        """The world of a log that `training simulate` wrote, at its end, with `days` more to come.

        The log's time is lived again: tastes have moved in it, and who joined shortly before its end is still there.

        Raises:
            TabrankError: no such log, or one that holds other events than this world.
        """
        origin = Origin.read(log)
        world = origin.world()
        world.go_on(default_rng([origin.seed, SPACES, seed]), origin.end_ms + round(days * DAY_MS))
        record, audience = origin.lived(world, progress)
        tables = log_tables(world, *origin.visits(world), record)
        _check(log, tables["events"], origin)
        agenda = Agenda()
        for row in _since(tables["candidates"], origin.end_ms):
            about = {name: row.pop(name) for name in ("id", "ts_ms", "ends_ms")}
            if about["ends_ms"] is None:  # a Candidate's default is not told
                del about["ends_ms"]
            agenda.add(Candidate(fields=row, **about))
        for row in _since(tables["events"], origin.end_ms):
            agenda.add(Event(**row))
        return cls(origin, world, audience, agenda)

    def visits(self, num: int, seed: int) -> tuple[Ints, Ints]:
        """`num` visits from the log's end on: when, and by whom; in the order of time."""
        rng = default_rng([self.origin.seed, VISITS, seed])
        end_ms = max(self.world.end_ms - LAST_MS, self.origin.end_ms + 1)
        return self.world.viewers.visits(rng, num, self.origin.end_ms, end_ms)


def _since(table: pa.Table, ts_ms: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.filter(pc.greater_equal(table["ts_ms"], ts_ms)).to_pylist()
    return rows


def _check(log: Path, events: pa.Table, origin: Origin) -> None:
    """Refuse a log that is not of this world, or in which a service has gone on already."""
    ours = int(np.count_nonzero(events["ts_ms"].to_numpy() < origin.end_ms))
    theirs = len(read_table(log, "events", ["id"])[1])
    if theirs > ours:
        raise TabrankError(
            f"--log: {log} holds {theirs} events, and its world had {ours}: a service has written to it since. "
            "Stop it, simulate the log anew, and load the store from it"
        )
    if theirs < ours:
        raise TabrankError(
            f"--log: {log} holds {theirs} events, and its world has {ours}: it is of another version; simulate it anew"
        )
