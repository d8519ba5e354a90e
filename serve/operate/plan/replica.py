"""Replica of a simulated deployment, and the core on which it computes."""

from __future__ import annotations

import asyncio

from serve.operate.plan.context import Ledger
from serve.operate.plan.nodes import Node


class Replica:
    """One replica; it has no node while none has room, and runs only once it has started.

    Replicas of a deployment that is not simulated are of this class: they only use room on nodes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.node: Node | None = None
        self.is_running = False
        self.is_stopping = False
        self.has_ended = False

    def start(self) -> None:
        """Do what begins when the replica can take requests."""


class Core:
    """Processor core of one replica, which does one thing at a time, in the order given."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        # When the core has done all that it was given so far.
        self._free_s = 0.0

    async def work(self, seconds: float) -> None:
        """Give the core this much work, and wait until it is done.

        Cancelling the wait does not take the work back.
        """
        now_s = asyncio.get_running_loop().time()
        self._free_s = max(now_s, self._free_s) + seconds
        self._ledger.busy_s += seconds
        await asyncio.sleep(self._free_s - now_s)
