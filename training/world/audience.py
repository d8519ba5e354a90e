"""Audience of each Space, through which earlier rankings affect later ones."""

from __future__ import annotations

import heapq
from collections import defaultdict

import numpy as np

from training.world.population import Ints


class Audience:
    """Listeners of each Space over time; joins and leaves are queued and applied in time order."""

    def __init__(self, num_spaces: int) -> None:
        # [S], as of the last `advance`.
        self.listeners: Ints = np.zeros(num_spaces, dtype=np.int64)
        self._ahead: list[tuple[int, int, int]] = []
        self._stays: defaultdict[int, dict[int, int]] = defaultdict(dict)

    def enter(self, viewer: int, space: int, join_ms: int, leave_ms: int) -> None:
        """Queue the stay of a viewer in a Space from join_ms to leave_ms."""
        heapq.heappush(self._ahead, (join_ms, space, 1))
        heapq.heappush(self._ahead, (leave_ms, space, -1))
        self._stays[viewer][space] = leave_ms

    def advance(self, ts_ms: int) -> None:
        """Apply all joins and leaves strictly before ts_ms."""
        while self._ahead and self._ahead[0][0] < ts_ms:
            _, space, change = heapq.heappop(self._ahead)
            self.listeners[space] += change

    def of(self, viewer: int, ts_ms: int) -> Ints:
        """Return the Spaces that the viewer is in at ts_ms, or about to join."""
        stays = self._stays.get(viewer)
        if not stays:
            return np.empty(0, dtype=np.int64)
        self._stays[viewer] = stays = {space: leave for space, leave in stays.items() if leave >= ts_ms}
        return np.array(list(stays), dtype=np.int64)
