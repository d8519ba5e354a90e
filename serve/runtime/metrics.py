"""Buffer metrics of rankings and of ingestion, and flush them to Ray once a second."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, get_args

from serve.contract.metric_catalog import METRICS, Metric
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
        self._buffer.add("tabrank_records_rejected", (), 0)
        for reason in get_args(Degraded):
            self._buffer.add("tabrank_degraded", (reason,), 0)
        for answer in (YES, NO):
            self._buffer.add("tabrank_candidate_lookups", answer, 0)
            self._buffer.add("tabrank_viewer_lookups", answer, 0)
            self._buffer.add("tabrank_live_rankings", answer, 0)
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
            add("tabrank_candidate_lookups", YES, len(query.candidates) - slate.num_unknown)
            add("tabrank_candidate_lookups", NO, slate.num_unknown)
            if query.viewer is not None:
                add("tabrank_viewer_lookups", NO if slate.unknown_viewer else YES)
            if query.model is not None:
                add("tabrank_live_rankings", NO if slate.lacks_fields else YES)
        add("tabrank_rankings", (experiment, arm, rung))
        add("tabrank_candidates", (experiment, arm, rung), len(query.candidates))
        if query.arm.slate:
            add("tabrank_unmet_places", (experiment, arm), slate.num_unmet)
        add("tabrank_model_rankings", (slate.model or "",))
        observe("tabrank_latency_seconds", latency_ms / 1e3, (experiment, arm))
        observe("tabrank_queue_seconds", (latency_ms - stage_ms["features"] - stage_ms["score"]) / 1e3)
        for reason in slate.degraded:
            add("tabrank_degraded", (reason,))

    def refused(self, latency_ms: float) -> None:
        """Count a refused ranking and its latency."""
        self._buffer.observe("tabrank_refused_seconds", latency_ms / 1e3)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record an answered HTTP request."""
        self._buffer.observe(
            "tabrank_http_server_request_duration_seconds", seconds, (method, route, str(status))
        )

    def rejected(self, num_records: int) -> None:
        """Count records of a batch that were rejected before they reached Ingest."""
        self._buffer.add("tabrank_records_rejected", (), num_records)

    def batch(self, num_candidates: int, stage_ms: Mapping[str, float]) -> None:
        """Count a batch and its stage times."""
        self._buffer.observe("tabrank_batch_candidates", num_candidates)
        for stage in BATCHES:
            self._buffer.observe("tabrank_stage_seconds", stage_ms[stage] / 1e3, (stage,))

    def tick(self, moment: Moment) -> None:
        """Flush the buffered values to Ray once a second; called several times a second."""
        self._oldest_ms = max(self._oldest_ms, moment.freshness_ms or 0.0)
        for (new, old), sums in moment.pairs.items():
            for measure, value in sums.items():
                self._buffer.add("tabrank_pairs", (new, old, measure), value)
        if not self._buffer.is_due():
            return
        before, self._flushed = self._flushed, moment
        record = self._buffer.record
        if moment.freshness_ms is not None:
            record("tabrank_freshness_seconds", self._oldest_ms / 1e3)
        self._oldest_ms = 0.0
        record("tabrank_steady_rankings_per_second", self._steady_rate.per_s(time.monotonic()))
        record("tabrank_kill_switch", float(moment.kill_switch))
        record("tabrank_load_shedding_level", moment.level)
        if before.model and before.model != moment.model:
            # Ray keeps exporting the last value of a gauge, so set that of the old version to 0.
            record("tabrank_model_info", 0.0, (before.model,))
        if moment.model:
            record("tabrank_model_info", 1.0, (moment.model,))
        self._buffer.add("tabrank_exposures_dropped", (), moment.num_dropped - before.num_dropped)
        self._buffer.add("tabrank_exposures_too_large", (), moment.num_too_large - before.num_too_large)
        self._buffer.add("tabrank_exposures_thinned", (), moment.num_thinned - before.num_thinned)
        self._buffer.flush()


class IngestMetrics:
    """Metrics of Ingest: records taken, commits, live quality and rollbacks."""

    def __init__(self, application: str) -> None:
        self._buffer = _Buffer(application)
        failures = ("exposure_dropped", "roll_failed", "segment_damaged")
        for kind in (*failures, "late", "expired", "time_ahead", "clock_step", "repeated_other"):
            self._buffer.add("tabrank_records", (kind,), 0)
        for kind in get_args(Kind):
            self._buffer.add("tabrank_rollbacks", (kind,), 0)

    def rolled_back(self, kind: Kind) -> None:
        """Count a rollback."""
        self._buffer.add("tabrank_rollbacks", (kind,))
        self._buffer.flush()

    def tick(self, tally: Tally) -> None:
        """Count the records taken since the last call; called at least once a second."""
        for kind, count in tally.counts.items():
            self._buffer.add("tabrank_records", (kind,), count)
        for labels, value in tally.quality.items():
            self._buffer.add("tabrank_quality", labels, value)
        for lag_ms in tally.event_lags_ms:
            self._buffer.observe("tabrank_event_lag_seconds", lag_ms / 1e3)
        for took_ms in tally.commits_ms:
            self._buffer.observe("tabrank_commit_seconds", took_ms / 1e3)
        if self._buffer.is_due():
            self._buffer.record("tabrank_unrolled_records", tally.num_unflushed)
            self._buffer.record("tabrank_store_bytes", tally.store_bytes)
            self._buffer.flush()


class _Buffer:
    """Metrics of one replica, by name. What is added and observed is flushed together."""

    def __init__(self, application: str) -> None:
        self._recorder = cache(partial(recorder, application=application))
        self._counts: defaultdict[str, defaultdict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._histograms: dict[str, Histogram] = {}
        self._send, self._send_every_s = agent(application)
        self._flushed_s = self._sent_s = time.monotonic()

    def add(self, name: str, labels: Labels = (), count: float = 1) -> None:
        self._counts[name][labels] += count

    def observe(self, name: str, value: float, labels: Labels = ()) -> None:
        if name not in self._histograms:
            self._histograms[name] = Histogram(METRICS[name])
        self._histograms[name].observe(value, labels)

    def record(self, name: str, value: float, labels: Labels = ()) -> None:
        """Set a gauge in Ray, or increment a counter."""
        metric = METRICS[name]
        self._recorder(metric)(value, dict(zip(metric.labels, labels, strict=True)))

    def is_due(self) -> bool:
        return time.monotonic() - self._flushed_s >= FLUSH_EVERY_S

    def flush(self) -> None:
        self._flushed_s = now_s = time.monotonic()
        for name, counts in self._counts.items():
            for labels, count in counts.items():
                self.record(name, count, labels)
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
