"""Buffer metrics of rankings and of ingestion, and flush them to Ray once a second."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
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

# A metric call to Ray costs microseconds; once a second it is shared by all rankings since.
FLUSH_EVERY_S = 1.0
# The stages of a batch.
BATCHES = ("features", "score")
Record = Callable[[float, dict[str, str]], None]


class RankMetrics(Metrics):
    """Metrics of one replica of FeatureFetch."""

    def __init__(self, application: str) -> None:
        buffer = self._buffer = _Buffer(application)
        self._steady, self._steady_rate = buffer.gauge(catalog.STEADY), SteadyRate(time.monotonic())
        self._freshness = buffer.gauge(catalog.FRESHNESS)
        self._kill_switch = buffer.gauge(catalog.KILL_SWITCH)
        self._level = buffer.gauge(catalog.LEVEL)
        self._model = buffer.gauge(catalog.MODEL)
        self._refused = buffer.histogram(catalog.REFUSED)
        self._http = buffer.histogram(catalog.HTTP)
        self._rejected = buffer.sums(catalog.REJECTED)
        self._dropped = buffer.sums(catalog.DROPPED)
        self._too_large = buffer.sums(catalog.TOO_LARGE)
        self._rankings = buffer.sums(catalog.RANKINGS)
        self._candidates = buffer.sums(catalog.CANDIDATES)
        self._by_model = buffer.sums(catalog.MODEL_RANKINGS)
        self._pairs = buffer.sums(catalog.PAIRS)
        self._degraded = buffer.sums(catalog.DEGRADED, get_args(Degraded))
        self._latency = buffer.histogram(catalog.LATENCY)
        self._queue = buffer.histogram(catalog.QUEUE)
        self._batch = buffer.histogram(catalog.BATCH)
        self._stage = buffer.histogram(catalog.STAGE)
        self._oldest_ms = 0.0
        self._flushed = Moment(None, 0, 0, False, None, 0.0)

    def ranked(self, slate: Slate, latency_ms: float) -> None:
        """Count a ranking; takes about 1 µs."""
        query, stage_ms = slate.query, slate.stage_ms
        experiment, arm, rung = query.experiment or "", query.arm.name, slate.rung
        # A test ends at any time, so that nobody misses its rankings.
        if query.traffic != "test":
            self._steady_rate.add()
        self._rankings.add((experiment, arm, rung))
        self._candidates.add((experiment, arm, rung), len(query.candidates))
        self._by_model.add((slate.model or "",))
        self._latency.observe(latency_ms / 1e3, (experiment, arm))
        self._queue.observe((latency_ms - stage_ms["features"] - stage_ms["score"]) / 1e3)
        for reason in slate.degraded:
            self._degraded.add((reason,))

    def refused(self, latency_ms: float) -> None:
        """Count a refused ranking and its latency."""
        self._refused.observe(latency_ms / 1e3)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record an answered HTTP request."""
        self._http.observe(seconds, (method, route, str(status)))

    def rejected(self, num_records: int) -> None:
        """Count records of a batch that were rejected before they reached Ingest."""
        self._rejected.add((), num_records)

    def batch(self, num_candidates: int, stage_ms: Mapping[str, float]) -> None:
        """Count a batch and its stage times."""
        self._batch.observe(num_candidates)
        for stage in BATCHES:
            self._stage.observe(stage_ms[stage] / 1e3, (stage,))

    def tick(self, moment: Moment) -> None:
        """Flush the buffered values to Ray once a second; called several times a second."""
        self._oldest_ms = max(self._oldest_ms, moment.freshness_ms or 0.0)
        for (new, old), sums in moment.pairs.items():
            for measure, value in sums.items():
                self._pairs.add((new, old, measure), value)
        if not self._buffer.is_due():
            return
        before, self._flushed = self._flushed, moment
        if moment.freshness_ms is not None:
            self._freshness(self._oldest_ms / 1e3, {})
        self._oldest_ms = 0.0
        self._steady(self._steady_rate.per_s(time.monotonic()), {})
        self._kill_switch(float(moment.kill_switch), {})
        self._level(moment.level, {})
        if before.model and before.model != moment.model:
            # Ray keeps exporting a gauge's last value.
            self._model(0.0, {"model": before.model})
        if moment.model:
            self._model(1.0, {"model": moment.model})
        self._dropped.add((), moment.num_dropped - before.num_dropped)
        self._too_large.add((), moment.num_too_large - before.num_too_large)
        self._buffer.flush()


class IngestMetrics:
    """Metrics of Ingest: records taken, commits, live quality and rollbacks."""

    def __init__(self, application: str) -> None:
        buffer = self._buffer = _Buffer(application)
        failures = ("exposure_dropped", "roll_failed", "segment_damaged")
        known = (*failures, "late", "expired", "time_ahead", "clock_step", "repeated_other")
        self._records = buffer.sums(catalog.RECORDS, known)
        self._quality = buffer.sums(catalog.QUALITY)
        self._rollbacks = buffer.sums(catalog.ROLLBACKS, get_args(Kind))
        self._lag = buffer.histogram(catalog.EVENT_LAG)
        self._commit = buffer.histogram(catalog.COMMIT)
        self._unrolled = buffer.gauge(catalog.UNROLLED)
        self._store = buffer.gauge(catalog.STORE)

    def rolled_back(self, kind: Kind) -> None:
        """Count a rollback."""
        self._rollbacks.add((kind,))
        self._rollbacks.flush()

    def tick(self, tally: Tally) -> None:
        """Count the records taken since the last call; called at least once a second."""
        for kind, count in tally.counts.items():
            self._records.add((kind,), count)
        for labels, value in tally.quality.items():
            self._quality.add(labels, value)
        for lag_ms in tally.event_lags_ms:
            self._lag.observe(lag_ms / 1e3)
        for took_ms in tally.commits_ms:
            self._commit.observe(took_ms / 1e3)
        if self._buffer.is_due():
            self._unrolled(tally.num_unflushed, {})
            self._store(tally.store_bytes, {})
            self._buffer.flush()


class _Buffer:
    """Metrics of one replica that are flushed together."""

    def __init__(self, application: str) -> None:
        self._application = application
        self._sums: list[_Sums] = []
        self._histograms: list[Histogram] = []
        self._send, self._send_every_s = agent(application)
        self._flushed_s = self._sent_s = time.monotonic()

    def gauge(self, metric: Metric) -> Record:
        return recorder(metric, self._application)

    def sums(self, metric: Metric, known: Iterable[str] = ()) -> _Sums:
        """Add a counter; `known` are the values of its one label that start at 0."""
        self._sums.append(_Sums(metric, self._application, [(value,) for value in known]))
        return self._sums[-1]

    def histogram(self, metric: Metric) -> Histogram:
        self._histograms.append(Histogram(metric))
        return self._histograms[-1]

    def is_due(self) -> bool:
        return time.monotonic() - self._flushed_s >= FLUSH_EVERY_S

    def flush(self) -> None:
        self._flushed_s = now_s = time.monotonic()
        for sums in self._sums:
            sums.flush()
        if now_s - self._sent_s >= self._send_every_s:
            self._sent_s = now_s
            self._send(self._histograms)


class _Sums:
    """Counter by labels.

    Prometheus sees no increase in a first sample, so the `known` labels start at 0, as does a
    metric without labels.
    """

    def __init__(self, metric: Metric, application: str, known: Iterable[Labels]) -> None:
        self._labels = metric.labels
        self._record = recorder(metric, application)
        begun = known if metric.labels else [()]
        self._gathered: defaultdict[Labels, float] = defaultdict(float, dict.fromkeys(begun, 0.0))

    def add(self, labels: Labels, count: float = 1) -> None:
        self._gathered[labels] += count

    def flush(self) -> None:
        for labels, count in self._gathered.items():
            self._record(count, dict(zip(self._labels, labels, strict=True)))
        self._gathered.clear()


def recorder(metric: Metric, application: str) -> Record:
    """Return a function that sets a gauge, or increments a counter, with labels."""
    from ray.util import metrics

    kind = metrics.Gauge if metric.is_gauge else metrics.Counter
    registered = kind(metric.name, metric.what, (APPLICATION, *metric.labels))
    # A counter's public method refuses 0.
    record: Record = registered.set_default_tags({APPLICATION: application})._record
    return record
