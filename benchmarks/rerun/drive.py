"""Drive simulated viewers: request rankings from a service, and send it their events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.random import default_rng

from benchmarks.rerun.simulator_state import SimulatorState
from serve.client import Client
from serve.contract.errors import TabrankError
from serve.contract.records import MAX_RECORDS, Event
from serve.features.slots import I64
from training.world.record import VisitLog
from training.world.world import Response

# The number of a random stream, beside those of `simulator_state`.
RESPONSES = 5
# The timeout of a call. It is long, because a ranking that misses it has the popular order.
TIMEOUT_S = 10.0


@dataclass
class Served:
    """Exposures and responses, in the order of the visits."""

    viewer: I64
    arm: list[str] = field(default_factory=list)
    rung: list[str] = field(default_factory=list)
    record: VisitLog = field(default_factory=VisitLog)
    # How many events were sent to the service.
    num_events: int = 0


def drive(
    simulator: SimulatorState,
    visits: tuple[I64, I64],
    service: Client,
    progress: Callable[[float], None] = lambda share: None,
) -> Served:
    """Run `visits` in the simulator one after another, each ranked by `service`.

    Before a ranking, the service receives exactly the records from strictly before it. Each visit
    has its own random numbers, so that arms that show the same candidates to the same viewers get
    the same responses. At the end, the service receives all records from before the end of the
    world. Leaves after that are not sent.
    """
    world, audience = simulator.world, simulator.audience
    served = Served(visits[1])
    ts_ms, viewers = (column.tolist() for column in visits)
    for number, (now_ms, who) in enumerate(zip(ts_ms, viewers, strict=True)):
        if number % 100 == 0:
            progress(number / len(ts_ms))
        audience.advance(now_ms)
        rng = default_rng([simulator.provenance.seed, RESPONSES, number])
        found = world.retrieve(rng, who, now_ms, audience)
        _send(simulator, now_ms, service, served)
        request_id = f"r{simulator.provenance.exposures + number:07d}"
        answer = service.rank(
            f"v{who:07d}",
            # The newest Space comes first, as in the simulated popular order, because candidates
            # with equal scores keep this order.
            [f"s{space:07d}" for space in np.sort(found)[::-1].tolist()],
            context={"hour": float(world.hour(who, now_ms))},
            request_id=request_id,
            now_ms=now_ms,
        )
        shown = np.array([int(ranked.candidate[1:]) for ranked in answer.ranking], np.int64)
        response = world.respond(rng, who, shown, now_ms, audience)
        served.arm.append(answer.arm)
        served.rung.append(answer.rung)
        served.record.add(shown, response)
        audience.add(who, shown, now_ms, response)
        _respond(simulator, who, request_id, shown, response)
    _send(simulator, world.end_ms, service, served)
    progress(1.0)
    return served


def _send(simulator: SimulatorState, before_ms: int, service: Client, served: Served) -> None:
    records = simulator.take(before_ms)
    for begin in range(0, len(records), MAX_RECORDS):
        answer = service.send(records[begin : begin + MAX_RECORDS])
        if answer.rejected or answer.duplicates:
            raise TabrankError(
                f"the service already has {answer.duplicates} events of this time, and rejects {len(answer.rejected)} "
                "records; fill its store anew from the log that precedes the simulated days"
            )
    served.num_events += sum(isinstance(record, Event) for record in records)


def _respond(simulator: SimulatorState, who: int, request_id: str, shown: I64, response: Response) -> None:
    """Schedule what a viewer does with the shown candidates."""
    for row in np.flatnonzero(response.clicked | response.hidden).tolist():
        space = int(shown[row])
        doing = {"hide" if response.hidden[row] else "click": response.click_ms[row]}
        if response.joined[row]:
            doing |= {"join": response.join_ms[row], "leave": response.leave_ms[row]}
        for kind, ts_ms in doing.items():
            simulator.add(
                Event(
                    id=f"{request_id}-{space}-{kind}",
                    viewer=f"v{who:07d}",
                    candidate=f"s{space:07d}",
                    kind=kind,
                    ts_ms=int(ts_ms),
                    request_id=request_id,
                )
            )
    simulator.world.update_tastes(who, shown[response.joined])
