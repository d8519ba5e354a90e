"""The state of the simulator at the end of a simulated log, from which an experiment continues."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.random import default_rng

from serve.contract.records import Candidate, ClientRecord, Event
from serve.features.slots import I64
from serve.log.replay import EVENT, UPSERT
from training.world.population import DAY_MS, MINUTE_MS
from training.world.provenance import Provenance
from training.world.record import log_tables
from training.world.world import Audience, World

# Visits stop 3 minutes before the end. Clicks, hides and joins follow within 2.5 minutes, so all of
# them are in time.
QUIET_MS = 3 * MINUTE_MS
# The numbers of random streams, beside the two of `Provenance`.
SPACES, VISITS = 3, 4


@dataclass
class SimulatorState:
    """A world with its audience, and the records that a service has not received yet.

    All of them advance with time.
    """

    provenance: Provenance
    world: World
    audience: Audience
    # In the order of time. Attributes come before events of the same time.
    queue: list[ClientRecord] = field(default_factory=list)

    @classmethod
    def after(cls, log: Path, days: float) -> SimulatorState:
        """Build the state at the end of a log that `training simulate` wrote, with `days` to come.

        The log's time is simulated again, because tastes moved during it, and because viewers who
        joined shortly before its end are still in the audience.

        Raises:
            TabrankError: the log does not exist, or `training simulate` did not write it.
        """
        provenance = Provenance.read(log)
        world = provenance.world()
        world.extend(default_rng([provenance.seed, SPACES]), provenance.end_ms + round(days * DAY_MS))
        record, audience = provenance.simulate_visits(world)
        tables = log_tables(world, *provenance.visits(world), record)
        simulator = cls(provenance, world, audience)
        for row in _since(tables["candidates"], provenance.end_ms):
            about = {name: row.pop(name) for name in ("id", "ts_ms", "ends_ms")}
            simulator.add(Candidate(fields=row, **about))
        for row in _since(tables["events"], provenance.end_ms):
            simulator.add(Event(**row))
        return simulator

    def add(self, record: ClientRecord) -> None:
        """Queue a record at its `ts_ms`."""
        insort(self.queue, record, key=_when)

    def take(self, before_ms: int) -> list[ClientRecord]:
        """Remove and return the queued records from strictly before a time."""
        num = bisect_left(self.queue, (before_ms, UPSERT), key=_when)
        due, self.queue[:num] = self.queue[:num], []
        return due

    def visits(self, num: int) -> tuple[I64, I64]:
        """Return times and viewers of `num` visits after the log's end, in the order of time."""
        rng = default_rng([self.provenance.seed, VISITS])
        end_ms = max(self.world.end_ms - QUIET_MS, self.provenance.end_ms + 1)
        return self.world.viewers.visits(rng, num, self.provenance.end_ms, end_ms)


def _when(record: ClientRecord) -> tuple[int, int]:
    return record.ts_ms or 0, EVENT if isinstance(record, Event) else UPSERT


def _since(table: pa.Table, ts_ms: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.filter(pc.greater_equal(table["ts_ms"], ts_ms)).to_pylist()
    return rows
