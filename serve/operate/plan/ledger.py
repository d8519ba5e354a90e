"""Record the outcome and answer time of each simulated request."""

from __future__ import annotations

from collections.abc import Sequence

from serve.operate.plan.service import PlannedService

# LATE: answered in popular order at the deadline.
NEW, QUEUED, TAKEN, FULL, LATE, REFUSED = range(6)


class Ledger:
    """States of the requests, by their number in the order of arrival, from 0."""

    def __init__(self, arrived_s: Sequence[float], by_model: Sequence[bool], service: PlannedService) -> None:
        self.arrived_s = arrived_s
        self.by_model = by_model
        self.state = bytearray(len(arrived_s))
        self.answered_s = [0.0] * len(arrived_s)
        self.service = service

    def end(self, request: int, state: int, at_s: float) -> None:
        """Record a request's answer."""
        self.state[request] = state
        self.answered_s[request] = at_s
