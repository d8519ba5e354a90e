"""Buffer metrics of rankings and of ingestion, and flush them to Ray once a second."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, get_args

from serve.contract import metric_catalog as catalog
from serve.contract.metric_catalog import Metric
from serve.contract.rankings import Degraded
from serve.ranking.telemetry import Metrics, Moment
from serve.rollout.guard import Kind

if TYPE_CHECKING:
    from serve.ingest.writer import Tally
    from serve.ranking.ranker import Slate

# A metric call to Ray costs microseconds; once a second it is shared by all rankings since.
FLUSH_EVERY_S = 1.0
APPLICATION = "application"
# The stages of a batch.
BATCHES = ("features", "score")
Labels = tuple[str, ...]
Record = Callable[[float, dict[str, str]], None]


class RankMetrics(Metrics):
    """Metrics of one replica of FeatureFetch."""

    def __init__(self, application: str) -> None:
        buffer = self._buffer = _Buffer(application)
        self._freshness = buffer.gauge(catalog.FRESHNESS)
        self._kill_switch = buffer.gauge(catalog.KILL_SWITCH)
        self._level = buffer.gauge(catalog.LEVEL)
        self._model = buffer.gauge(catalog.MODEL)
        self._refused = buffer.sums(catalog.REFUSED)
        self._rejected = buffer.sums(catalog.REJECTED)
        self._dropped = buffer.sums(catalog.DROPPED)
        self._too_large = buffer.sums(catalog.TOO_LARGE)
        self._rankings = buffer.sums(catalog.RANKINGS)
        self._candidates = buffer.sums(catalog.CANDIDATES)
        self._by_model = buffer.sums(catalog.MODEL_RANKINGS)
        self._pairs = buffer.sums(catalog.PAIRS)
        self._degraded = buffer.sums(catalog.DEGRADED, get_args(Degraded))
        self._latency = buffer.sums(catalog.LATENCY)
        self._queue = buffer.sums(catalog.QUEUE)
        self._batch = buffer.sums(catalog.BATCH)
        self._stage = buffer.sums(catalog.STAGE, BATCHES)
        self._oldest_ms = 0.0
        self._flushed = Moment(None, 0, 0, False, None, 0.0)

    def ranked(self, slate: Slate, latency_ms: float) -> None:
        """Count a ranking; takes about 1 µs."""
        query, stage_ms = slate.query, slate.stage_ms
        experiment, arm, rung = query.experiment or "", query.arm.name, slate.rung
        self._rankings.add((experiment, arm, rung))
        self._candidates.add((experiment, arm, rung), len(query.candidates))
        self._by_model.add((slate.model or "",))
        self._latency.observe(latency_ms, (experiment, arm))
        self._queue.observe(latency_ms - stage_ms["features"] - stage_ms["score"])
        for reason in slate.degraded:
            self._degraded.add((reason,))

    def refused(self, latency_ms: float) -> None:
        """Count a refused ranking and its latency."""
        self._refused.observe(latency_ms)

    def rejected(self, num_records: int) -> None:
        """Count records of a batch that were rejected before they reached Ingest."""
        self._rejected.add((), num_records)

    def batch(self, num_candidates: int, stage_ms: Mapping[str, float]) -> None:
        """Count a batch and its stage times."""
        self._batch.observe(num_candidates)
        for stage in BATCHES:
            self._stage.observe(stage_ms[stage], (stage,))

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
            self._freshness(self._oldest_ms, {})
        self._oldest_ms = 0.0
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
        known = (*failures, "late", "expired", "time_ahead", "clock_step")
        self._records = buffer.sums(catalog.RECORDS, known)
        self._quality = buffer.sums(catalog.QUALITY)
        self._rollbacks = buffer.sums(catalog.ROLLBACKS, get_args(Kind))
        self._lag = buffer.sums(catalog.EVENT_LAG)
        self._commit = buffer.sums(catalog.COMMIT)
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
            self._lag.observe(lag_ms)
        for took_ms in tally.commits_ms:
            self._commit.observe(took_ms)
        if self._buffer.is_due():
            self._unrolled(tally.num_unflushed, {})
            self._store(tally.store_bytes, {})
            self._buffer.flush()


class _Buffer:
    """Metrics of one replica that are flushed together."""

    def __init__(self, application: str) -> None:
        self._application = application
        self._sums: list[_Sums] = []
        self._flushed_s = time.monotonic()

    def gauge(self, metric: Metric) -> Record:
        return recorder(metric, metric.labels, self._application)

    def sums(self, metric: Metric, known: Iterable[str] = ()) -> _Sums:
        """Add a counter or a histogram; `known` are the values of its one label that start at 0."""
        self._sums.append(_Sums(metric, self._application, [(value,) for value in known]))
        return self._sums[-1]

    def is_due(self) -> bool:
        return time.monotonic() - self._flushed_s >= FLUSH_EVERY_S

    def flush(self) -> None:
        self._flushed_s = time.monotonic()
        for sums in self._sums:
            sums.flush()


class _Sums:
    """Counter by labels, or histogram: a counter with a bucket for each bound.

    Prometheus sees no increase in a first sample, so the `known` labels start at 0, as does a
    metric without labels. All buckets of a label start together.
    """

    def __init__(self, metric: Metric, application: str, known: Iterable[Labels]) -> None:
        self._labels = (*metric.labels, "le") if metric.bounds else metric.labels
        self._record = recorder(metric, self._labels, application)
        self._bounds = metric.bounds
        self._ends: list[Labels] = (
            [(str(bound),) for bound in (*metric.bounds, "+Inf")] if metric.bounds else [()]
        )
        self._begun: set[Labels] = set()
        # By labels, the sum of each bucket.
        self._gathered: defaultdict[Labels, list[float]] = defaultdict(lambda: [0] * len(self._ends))
        for labels in known if metric.labels else [()]:
            self._begin(labels)

    def add(self, labels: Labels, count: float = 1) -> None:
        self._gathered[labels][0] += count

    def observe(self, value: float, labels: Labels = ()) -> None:
        self._gathered[labels][bisect_left(self._bounds, value)] += 1

    def flush(self) -> None:
        for labels, buckets in self._gathered.items():
            self._begin(labels)
            for end, within in zip(self._ends, accumulate(buckets), strict=True):
                if within:
                    self._set(within, labels, end)
        self._gathered.clear()

    def _begin(self, labels: Labels) -> None:
        if labels not in self._begun:
            self._begun.add(labels)
            for end in self._ends:
                self._set(0, labels, end)

    def _set(self, value: float, labels: Labels, end: Labels) -> None:
        self._record(value, dict(zip(self._labels, (*labels, *end), strict=True)))


def recorder(metric: Metric, labels: tuple[str, ...], application: str) -> Record:
    """Return a function that sets a gauge, or increments a counter, with labels."""
    from ray.util import metrics

    kind = metrics.Gauge if metric.is_gauge else metrics.Counter
    registered = kind(metric.name, metric.what, (APPLICATION, *labels))
    # A counter's public method refuses 0.
    record: Record = registered.set_default_tags({APPLICATION: application})._record
    return record
