"""Provenance of a simulated log: the values from which its world can be replayed and continued."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from numpy.random import Generator, SeedSequence, default_rng

from serve.contract.errors import TabrankError
from serve.contract.typed_reader import STRICT, read
from serve.contract.validation import json_value
from serve.features.slots import I64
from serve.storage.atomic_files import write_whole
from training.world.record import VisitLog
from training.world.world import Audience, ExaminationCurve, Unkind, World

WORLD = "world.json"


@dataclass(frozen=True)
class Provenance:
    """The seed, the numbers of viewers and exposures, the time span and the kind of a world."""

    __pydantic_config__ = STRICT

    # The version of the world. In another version, the same seed gives another world.
    version: Literal[3]
    seed: int
    viewers: int
    exposures: int
    start_ms: int
    end_ms: int
    examination: ExaminationCurve
    unkind: tuple[Unkind, ...] = ()

    @classmethod
    def read(cls, log: Path) -> Provenance:
        """Read the provenance of a log that `training simulate` wrote.

        Raises:
            TabrankError: the log has none, or its provenance is of another version.
        """
        try:
            return read(cls, json_value((log / WORLD).read_bytes(), WORLD), WORLD)
        except (OSError, TabrankError) as error:
            raise TabrankError(f"--log {log}: its world is unknown: {error}; simulate it again") from None

    def write(self, log: Path) -> None:
        """Write the provenance beside the log's tables."""
        write_whole(log / WORLD, json.dumps(asdict(self)).encode())

    def world(self) -> World:
        """Return the world at its beginning."""
        span = {"start_ms": self.start_ms, "end_ms": self.end_ms}
        return World(seed=self.seed, viewers=self.viewers, **span, curve=self.examination, unkind=self.unkind)

    def visits(self, world: World) -> tuple[I64, I64]:
        """Return the times of the visits, in order, and their viewers."""
        return world.viewers.visits(self._streams()[0], self.exposures, self.start_ms, self.end_ms)

    def simulate_visits(
        self, world: World, progress: Callable[[float], None] = lambda share: None
    ) -> tuple[VisitLog, Audience]:
        """Simulate the visits with the popular order, and return their record and the audience.

        The world may last longer than the visits, because what happens later does not affect them.
        """
        ts_ms, viewer = self.visits(world)
        rng = self._streams()[1]
        audience, record = Audience(len(world.spaces), world.viewers.friends), VisitLog()
        visits = list(zip(ts_ms.tolist(), viewer.tolist(), strict=True))
        for num_done, (now_ms, who) in enumerate(visits):
            if num_done % 500 == 0:
                progress(0.9 * num_done / len(visits))
            audience.advance(now_ms)
            found = world.retrieve(rng, who, now_ms, audience)
            shown = world.order(rng, who, found, now_ms, audience)
            response = world.respond(rng, who, shown, now_ms, audience)
            record.add(shown, response)
            audience.add(who, shown, now_ms, response)
            world.update_tastes(who, shown[response.joined])
        return record, audience

    def _streams(self) -> list[Generator]:
        """Return separate random streams for visits and responses, so arms can share the visits."""
        return [default_rng(child) for child in SeedSequence([self.seed, 1]).spawn(2)]
