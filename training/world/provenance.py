"""What a simulated log is made from: little enough to live its time again, and to go on from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng

from serve.contract.errors import TabrankError
from training.world.audience import Audience
from training.world.population import Ints
from training.world.record import Record
from training.world.world import World

WORLD = "world.json"


@dataclass(frozen=True)
class Origin:
    """A seed, how many people and visits there are, and from when to when."""

    seed: int
    viewers: int
    exposures: int
    start_ms: int
    end_ms: int

    @classmethod
    def read(cls, log: Path) -> Origin:
        """Of a log that `training simulate` wrote.

        Raises:
            TabrankError: it is not such a log.
        """
        try:
            values = json.loads((log / WORLD).read_text(encoding="utf-8"))
            return cls(**{field.name: int(values[field.name]) for field in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError):
            raise TabrankError(
                f"--log: {log} holds no {WORLD}, so that nobody knows which world it is of; name a log that "
                "`python -m training simulate` wrote"
            ) from None

    def write(self, log: Path) -> None:
        """Put it beside the log's tables."""
        (log / WORLD).write_text(json.dumps(asdict(self)), encoding="utf-8")

    def world(self) -> World:
        """The world as it begins."""
        return World(seed=self.seed, viewers=self.viewers, start_ms=self.start_ms, end_ms=self.end_ms)

    def visits(self, world: World) -> tuple[Ints, Ints]:
        """When, and by whom; in the order of time."""
        return world.viewers.visits(self._streams()[0], self.exposures, self.start_ms, self.end_ms)

    def lived(
        self, world: World, progress: Callable[[float], None] = lambda share: None
    ) -> tuple[Record, Audience]:
        """What came of the visits with the popular arm, and the audience as it is then.

        The world may last longer than the visits: what comes later bears on none of them.
        """
        ts_ms, viewer = self.visits(world)
        rng = self._streams()[1]
        audience, record = Audience(len(world.spaces)), Record()
        visits = list(zip(ts_ms.tolist(), viewer.tolist(), strict=True))
        for num_done, (now_ms, who) in enumerate(visits):
            if num_done % 500 == 0:
                progress(0.9 * num_done / len(visits))
            audience.advance(now_ms)
            found = world.retrieve(rng, who, now_ms, audience.listeners, without=audience.of(who, now_ms))
            # The popular arm: the largest audience first, of equals the newest.
            shown = found[np.lexsort((-found, -audience.listeners[found]))]
            response = world.respond(rng, who, shown, now_ms, audience.listeners[shown])
            record.add(shown, response)
            for row in np.flatnonzero(response.joined).tolist():
                audience.enter(who, int(shown[row]), int(response.join_ms[row]), int(response.leave_ms[row]))
            world.enjoy(who, shown[response.joined])
        return record, audience

    def _streams(self) -> list[Generator]:
        """Of the visits and of what comes of them, apart: another arm can be run with the same visits."""
        return [default_rng(child) for child in SeedSequence([self.seed, 1]).spawn(2)]
