"""The service's metrics: their names, and how an answer becomes numbers."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve.ranking import Slate

RANKINGS = "tabrank_rankings"
CANDIDATES = "tabrank_candidates"
FLUSH_EVERY_S = 1.0  # a metric call costs microseconds, and is paid once for all rankings of so long


class RankMetrics:
    """Counts rankings and candidates by arm and rung, through Ray's metrics (prefix `ray_`, suffix `_total`)."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter as RayCounter

        self._rankings = RayCounter(RANKINGS, "Answered rankings.", ("arm", "rung"))
        self._candidates = RayCounter(CANDIDATES, "Ranked candidates.", ("arm", "rung"))
        self._pending: Counter[tuple[str, str]] = Counter()
        self._sizes: Counter[tuple[str, str]] = Counter()
        self._flushed = time.monotonic()

    def observe(self, slates: list[Slate]) -> None:
        """Count these rankings; called without any from time to time, so that the last ones are told."""
        for slate in slates:
            key = (slate.query.arm.name, slate.rung)
            self._pending[key] += 1
            self._sizes[key] += len(slate.query.candidates)
        if time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            self._flush()

    def _flush(self) -> None:
        for (arm, rung), count in self._pending.items():
            self._rankings.inc(count, {"arm": arm, "rung": rung})
            if self._sizes[arm, rung]:
                self._candidates.inc(self._sizes[arm, rung], {"arm": arm, "rung": rung})
        self._pending.clear()
        self._sizes.clear()
        self._flushed = time.monotonic()
