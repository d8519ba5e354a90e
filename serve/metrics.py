"""The service's metrics: their names, and how an answer becomes numbers."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING

from serve.feature_fetch import Metrics

if TYPE_CHECKING:
    from serve.ranking import Slate

RANKINGS = "tabrank_rankings"
CANDIDATES = "tabrank_candidates"
LATENCY = "tabrank_latency_ms"
FRESHNESS = "tabrank_freshness_ms"
DROPPED = "tabrank_exposures_dropped"
RECORDS = "tabrank_records"
BOUNDS_MS = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 100, 150, 250, 500, 1000)  # above the last: +Inf
LABELS = ("experiment", "arm", "rung")
FLUSH_EVERY_S = 1.0  # a metric call costs microseconds, and is paid once for all rankings of so long


class RankMetrics(Metrics):
    """Counts rankings and candidates by experiment, arm and rung, and by latency, through Ray's metrics.

    Ray adds the prefix `ray_` and the suffix `_total`. The latency is a histogram made of counters, cumulative over
    the label `le` as Prometheus has it: `histogram_quantile` takes it. Ray's own histograms replay each observation
    in its agent, 40 µs of CPU a request in all.
    """

    def __init__(self) -> None:
        from ray.util.metrics import Counter as RayCounter
        from ray.util.metrics import Gauge

        self._freshness = Gauge(FRESHNESS, "How old the features may be, in ms.")
        self._dropped = RayCounter(DROPPED, "Answered rankings that were not logged.")
        self._num_dropped = 0
        self._rankings = RayCounter(RANKINGS, "Answered rankings.", LABELS)
        self._candidates = RayCounter(CANDIDATES, "Ranked candidates.", LABELS)
        self._latency = RayCounter(LATENCY, "Rankings answered within `le` ms.", ("experiment", "arm", "le"))
        self._num_rankings: Counter[tuple[str, str, str]] = Counter()  # by LABELS
        self._num_candidates: Counter[tuple[str, str, str]] = Counter()
        self._num_within: Counter[tuple[str, str, int]] = Counter()
        self._flushed = time.monotonic()

    def ranked(self, slate: Slate, latency_ms: float) -> None:
        """Count a ranking."""
        arm = slate.query.arm.name
        labels = slate.query.experiment or "", arm, slate.rung
        self._num_rankings[labels] += 1
        self._num_candidates[labels] += len(slate.query.candidates)
        self._num_within[labels[0], arm, bisect_left(BOUNDS_MS, latency_ms)] += 1

    def tick(self, freshness_ms: float | None, num_dropped: int) -> None:
        """Tell what has gathered; called several times a second. `num_dropped` exposures since the start."""
        if freshness_ms is not None:
            self._freshness.set(freshness_ms)
        if num_dropped > self._num_dropped:
            self._dropped.inc(num_dropped - self._num_dropped)
            self._num_dropped = num_dropped
        if time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            self._flush()

    def _flush(self) -> None:
        for labels, count in self._num_rankings.items():
            tags = dict(zip(LABELS, labels, strict=True))
            self._rankings.inc(count, tags)
            if self._num_candidates[labels]:
                self._candidates.inc(self._num_candidates[labels], tags)
        for experiment, arm in {labels[:2] for labels in self._num_within}:
            within = 0
            for bucket, bound in enumerate((*map(str, BOUNDS_MS), "+Inf")):
                within += self._num_within[experiment, arm, bucket]
                if within:
                    self._latency.inc(within, {"experiment": experiment, "arm": arm, "le": bound})
        self._num_rankings.clear()
        self._num_candidates.clear()
        self._num_within.clear()
        self._flushed = time.monotonic()


class IngestMetrics:
    """Counts what Ingest took, by kind: event, exposure, viewer, candidate, forget, ended; and duplicate, rejected,
    roll_failed."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter as RayCounter

        self._records = RayCounter(RECORDS, "Records that Ingest took.", ("kind",))

    def tick(self, counts: Counter[str]) -> None:
        """Tell what was counted."""
        for kind, count in list(counts.items()):
            if count:
                self._records.inc(count, {"kind": kind})
