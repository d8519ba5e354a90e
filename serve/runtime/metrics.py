"""Buffer metrics of rankings and of ingestion, and flush them to Ray once a second."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, get_args

from serve.contract import metric_catalog as catalog
from serve.contract.metric_catalog import Metric
from serve.contract.rankings import Degraded
from serve.ranking.steady_rate import SteadyRate
from serve.ranking.telemetry import Metrics, Moment
from serve.rollout.guard import Kind
from serve.runtime.histograms import APPLICATION, Histogram, Labels, agent

if TYPE_CHECKING:
    from serve.ingest.writer import Tally
    from serve.ranking.query import Slate

# A metric call to Ray costs microseconds. Once a second, one call serves all rankings since the
# last.
FLUSH_EVERY_S = 1.0
# The stages of a batch.
BATCHES = ("features", "score")
YES, NO = ("true",), ("false",)
Record = Callable[[float, dict[str, str]], None]


class RankMetrics(Metrics):
    """Metrics of one replica of FeatureFetch."""

    def __init__(self, application: str) -> None:
        self._buffer = _Buffer(application)
        # Prometheus sees no increase in the first sample of a series, so these counters begin at 0.
        self._buffer.add(catalog.REJECTED, (), 0)
        for reason in get_args(Degraded):
            self._buffer.add(catalog.DEGRADED, (reason,), 0)
        for answer in (YES, NO):
            self._buffer.add(catalog.LOOKUPS, answer, 0)
            self._buffer.add(catalog.VIEWERS, answer, 0)
            self._buffer.add(catalog.LIVE_RANKINGS, answer, 0)
        self._steady_rate = SteadyRate(time.monotonic())
        self._oldest_ms = 0.0
        self._flushed = Moment(None, 0, 0, 0, False, None, 0.0)

    def ranked(self, slate: Slate, latency_ms: float) -> None:
        """Count a ranking; takes about 2 µs."""
        query, stage_ms = slate.query, slate.stage_ms
        experiment, arm, rung = query.experiment or "", query.arm.name, slate.rung
        add, observe = self._buffer.add, self._buffer.observe
        # Test traffic does not count here: it may end at any time, and may use ids that do not
        # exist.
        if query.traffic != "test":
            self._steady_rate.add()
            add(catalog.LOOKUPS, YES, len(query.candidates) - slate.num_unknown)
            add(catalog.LOOKUPS, NO, slate.num_unknown)
            if query.viewer is not None:
                add(catalog.VIEWERS, NO if slate.unknown_viewer else YES)
            if query.model is not None:
                add(catalog.LIVE_RANKINGS, NO if slate.lacks_fields else YES)
        add(catalog.RANKINGS, (experiment, arm, rung))
        add(catalog.CANDIDATES, (experiment, arm, rung), len(query.candidates))
        if query.arm.slate:
            add(catalog.UNMET, (experiment, arm), slate.num_unmet)
        add(catalog.MODEL_RANKINGS, (slate.model or "",))
        observe(catalog.LATENCY, latency_ms / 1e3, (experiment, arm))
        observe(catalog.QUEUE, (latency_ms - stage_ms["features"] - stage_ms["score"]) / 1e3)
        for reason in slate.degraded:
            add(catalog.DEGRADED, (reason,))

    def refused(self, latency_ms: float) -> None:
        """Count a refused ranking and its latency."""
        self._buffer.observe(catalog.REFUSED, latency_ms / 1e3)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record an answered HTTP request."""
        self._buffer.observe(catalog.HTTP, seconds, (method, route, str(status)))

    def rejected(self, num_records: int) -> None:
        """Count records of a batch that were rejected before they reached Ingest."""
        self._buffer.add(catalog.REJECTED, (), num_records)

    def batch(self, num_candidates: int, stage_ms: Mapping[str, float]) -> None:
        """Count a batch and its stage times."""
        self._buffer.observe(catalog.BATCH, num_candidates)
        for stage in BATCHES:
            self._buffer.observe(catalog.STAGE, stage_ms[stage] / 1e3, (stage,))

    def tick(self, moment: Moment) -> None:
        """Flush the buffered values to Ray once a second; called several times a second."""
        self._oldest_ms = max(self._oldest_ms, moment.freshness_ms or 0.0)
        for (new, old), sums in moment.pairs.items():
            for measure, value in sums.items():
                self._buffer.add(catalog.PAIRS, (new, old, measure), value)
        if not self._buffer.is_due():
            return
        before, self._flushed = self._flushed, moment
        record = self._buffer.record
        if moment.freshness_ms is not None:
            record(catalog.FRESHNESS, self._oldest_ms / 1e3)
        self._oldest_ms = 0.0
        record(catalog.STEADY, self._steady_rate.per_s(time.monotonic()))
        record(catalog.KILL_SWITCH, float(moment.kill_switch))
        record(catalog.LEVEL, moment.level)
        if before.model and before.model != moment.model:
            # Ray keeps exporting the last value of a gauge, so set that of the old version to 0.
            record(catalog.MODEL, 0.0, (before.model,))
        if moment.model:
            record(catalog.MODEL, 1.0, (moment.model,))
        self._buffer.add(catalog.DROPPED, (), moment.num_dropped - before.num_dropped)
        self._buffer.add(catalog.TOO_LARGE, (), moment.num_too_large - before.num_too_large)
        self._buffer.add(catalog.THINNED, (), moment.num_thinned - before.num_thinned)
        self._buffer.flush()


class IngestMetrics:
    """Metrics of Ingest: records taken, commits, live quality and rollbacks."""

    def __init__(self, application: str) -> None:
        self._buffer = _Buffer(application)
        failures = ("exposure_dropped", "roll_failed", "segment_damaged")
        for kind in (*failures, "late", "expired", "time_ahead", "clock_step", "repeated_other"):
            self._buffer.add(catalog.RECORDS, (kind,), 0)
        for kind in get_args(Kind):
            self._buffer.add(catalog.ROLLBACKS, (kind,), 0)

    def rolled_back(self, kind: Kind) -> None:
        """Count a rollback."""
        self._buffer.add(catalog.ROLLBACKS, (kind,))
        self._buffer.flush()

    def tick(self, tally: Tally) -> None:
        """Count the records taken since the last call; called at least once a second."""
        for kind, count in tally.counts.items():
            self._buffer.add(catalog.RECORDS, (kind,), count)
        for labels, value in tally.quality.items():
            self._buffer.add(catalog.QUALITY, labels, value)
        for lag_ms in tally.event_lags_ms:
            self._buffer.observe(catalog.EVENT_LAG, lag_ms / 1e3)
        for took_ms in tally.commits_ms:
            self._buffer.observe(catalog.COMMIT, took_ms / 1e3)
        if self._buffer.is_due():
            self._buffer.record(catalog.UNROLLED, tally.num_unflushed)
            self._buffer.record(catalog.STORE, tally.store_bytes)
            self._buffer.flush()


class _Buffer:
    """Metrics of one replica, by name. What is added and observed is flushed together."""

    def __init__(self, application: str) -> None:
        self._recorder = cache(partial(recorder, application=application))
        self._counts: dict[str, tuple[Metric, defaultdict[Labels, float]]] = {}
        self._histograms: dict[str, Histogram] = {}
        self._send, self._send_every_s = agent(application)
        self._flushed_s = self._sent_s = time.monotonic()

    def add(self, metric: Metric, labels: Labels = (), count: float = 1) -> None:
        if metric.name not in self._counts:
            self._counts[metric.name] = metric, defaultdict(float)
        self._counts[metric.name][1][labels] += count

    def observe(self, metric: Metric, value: float, labels: Labels = ()) -> None:
        if metric.name not in self._histograms:
            self._histograms[metric.name] = Histogram(metric)
        self._histograms[metric.name].observe(value, labels)

    def record(self, metric: Metric, value: float, labels: Labels = ()) -> None:
        """Set a gauge in Ray, or increment a counter."""
        self._recorder(metric)(value, dict(zip(metric.labels, labels, strict=True)))

    def is_due(self) -> bool:
        return time.monotonic() - self._flushed_s >= FLUSH_EVERY_S

    def flush(self) -> None:
        self._flushed_s = now_s = time.monotonic()
        for metric, counts in self._counts.values():
            for labels, count in counts.items():
                self.record(metric, count, labels)
            counts.clear()
        if now_s - self._sent_s >= self._send_every_s:
            self._sent_s = now_s
            self._send(self._histograms.values())


def recorder(metric: Metric, application: str) -> Record:
    """Return a function that sets a gauge, or increments a counter, with labels."""
    from ray.util import metrics

    kind = metrics.Gauge if metric.is_gauge else metrics.Counter
    registered = kind(metric.name, metric.what, (APPLICATION, *metric.labels))
    # A counter's public method refuses 0.
    record: Record = registered.set_default_tags({APPLICATION: application})._record
    return record
