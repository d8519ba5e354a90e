"""Parts that everything in one simulation shares, and the records that it leaves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from serve.operate.plan.costs import Costs
from serve.operate.plan.policy import Policy
from serve.operate.plan.service import PlannedService

# LATE: answered in popular order at the deadline. OPEN: not answered when the simulation ended.
OPEN, FULL, LATE, REFUSED = range(4)


class Ledger:
    """Outcomes of the requests, by their number in the order of arrival, from 0."""

    def __init__(self, arrived_s: Sequence[float], by_model: Sequence[bool]) -> None:
        self.arrived_s = arrived_s
        self.by_model = by_model
        self.state = bytearray(len(arrived_s))
        self.answered_s = [0.0] * len(arrived_s)
        # The processor time of all replicas.
        self.busy_s = 0.0

    def end(self, request: int, state: int, at_s: float) -> None:
        """Record a request's answer."""
        self.state[request] = state
        self.answered_s[request] = at_s


@dataclass(frozen=True)
class SimulationContext:
    """Inputs of a simulation, its records, and its tasks, which end with it."""

    service: PlannedService
    costs: Costs
    ledger: Ledger
    policy: Policy
    rng: random.Random
    tasks: asyncio.TaskGroup
