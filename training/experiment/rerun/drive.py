"""The simulated viewers at a service: they come, look at what it ranks, and it is told what they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.random import default_rng

from serve.contract.rankings import RankRequest
from serve.contract.records import Event
from training.experiment.rerun.service import Ranks
from training.experiment.rerun.simulator_state import Scene
from training.world.population import Ints
from training.world.record import Record
from training.world.world import Response

RESPONSES = 5  # a stream of chance beside those of `scene`


@dataclass
class Served:
    """What was shown to whom and what came of it, in the order of the visits."""

    ts_ms: Ints
    viewer: Ints
    request_id: list[str] = field(default_factory=list)
    arm: list[str] = field(default_factory=list)
    rung: list[str] = field(default_factory=list)
    record: Record = field(default_factory=Record)
    num_events: int = 0  # told of: clicks, joins and leaves


def drive(
    scene: Scene,
    visits: tuple[Ints, Ints],
    service: Ranks,
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
) -> Served:
    """Have `visits` happen in `scene`, one after the other, each ranked by `service`.

    Before a ranking the service is told all that happened strictly before it, and no more. What a visit draws is its
    own: arms that show the same to the same people get the same from them. At the end all is told that happens before
    the world ends; who would leave later has not left.
    """
    world, audience = scene.world, scene.audience
    served = Served(*visits)
    ts_ms, viewers = (column.tolist() for column in visits)
    for number, (now_ms, who) in enumerate(zip(ts_ms, viewers, strict=True)):
        if number % 100 == 0:
            progress(number / len(ts_ms))
        audience.advance(now_ms)
        rng = default_rng([scene.origin.seed, RESPONSES, seed, number])
        found = world.retrieve(rng, who, now_ms, audience.listeners, without=audience.of(who, now_ms))
        _tell(scene, now_ms, service, served)
        request_id = f"r{scene.origin.exposures + number:07d}"
        answer = service.rank(
            RankRequest(
                viewer=f"v{who:07d}",
                # the newest first, as popular has them among equals: where nothing else decides they stay as given
                candidates=[f"s{space:07d}" for space in np.sort(found)[::-1].tolist()],
                context={"hour": float(world.hour(who, now_ms))},
                request_id=request_id,
                now_ms=now_ms,
            )
        )
        shown = np.array([int(name[1:]) for name in answer.shown], np.int64)
        response = world.respond(rng, who, shown, now_ms, audience.listeners[shown])
        served.request_id.append(request_id)
        served.arm.append(answer.arm)
        served.rung.append(answer.rung)
        served.record.add(shown, response)
        _plan(scene, who, request_id, shown, response)
    _tell(scene, world.end_ms, service, served)
    progress(1.0)
    return served


def _tell(scene: Scene, before_ms: int, service: Ranks, served: Served) -> None:
    records = scene.agenda.before(before_ms)
    if records:
        service.tell(records)
        served.num_events += sum(isinstance(record, Event) for record in records)


def _plan(scene: Scene, who: int, request_id: str, shown: Ints, response: Response) -> None:
    """What a viewer will do with what they were shown."""
    for row in np.flatnonzero(response.clicked).tolist():
        space = int(shown[row])
        doing = {"click": response.click_ms[row]}
        if response.joined[row]:
            join_ms, leave_ms = int(response.join_ms[row]), int(response.leave_ms[row])
            doing |= {"join": join_ms, "leave": leave_ms}
            scene.audience.enter(who, space, join_ms, leave_ms)
        for kind, ts_ms in doing.items():
            scene.agenda.add(
                Event(
                    id=f"{request_id}-{space}-{kind}",
                    viewer=f"v{who:07d}",
                    candidate=f"s{space:07d}",
                    kind=kind,
                    ts_ms=int(ts_ms),
                    request_id=request_id,
                )
            )
    scene.world.enjoy(who, shown[response.joined])
