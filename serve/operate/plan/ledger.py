"""What became of each simulated request, and when."""

from __future__ import annotations

from collections.abc import Sequence

from serve.operate.plan.service import Service

NEW, QUEUED, TAKEN, FULL, LATE, REFUSED = range(6)  # LATE: answered in popular order, at its deadline


class Ledger:
    """Requests by their number, from 0 on, in the order in which they come."""

    def __init__(self, arrived_s: Sequence[float], by_model: Sequence[bool], service: Service) -> None:
        self.arrived_s = arrived_s
        self.by_model = by_model
        self.state = bytearray(len(arrived_s))
        self.answered_s = [0.0] * len(arrived_s)
        self.service = service

    def end(self, request: int, state: int, at_s: float) -> None:
        """The request's answer goes out."""
        self.state[request] = state
        self.answered_s[request] = at_s
