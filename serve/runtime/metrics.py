"""Buffer metrics of rankings and of ingestion, and flush them to Ray once a second."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, get_args

from serve.contract.metric_catalog import (
    BATCH,
    BOUNDS_MS,
    CANDIDATES,
    COMMIT,
    DEGRADED,
    DROPPED,
    EVENT_LAG,
    FRESHNESS,
    KILL_SWITCH,
    LATENCY,
    LEVEL,
    MODEL,
    MODEL_RANKINGS,
    PAIRS,
    QUEUE,
    RANKINGS,
    RECORDS,
    REFUSED,
    REJECTED,
    ROLLBACKS,
    STAGE,
    TOO_LARGE,
    UNROLLED,
    Metric,
)
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
        self._freshness = _Gauge(FRESHNESS, application)
        self._kill_switch = _Gauge(KILL_SWITCH, application)
        self._level = _Gauge(LEVEL, application)
        self._refused = _Histogram(REFUSED, application, [()])
        self._model = _Gauge(MODEL, application)
        self._dropped = _Counts(DROPPED, application, [()])
        self._rejected = _Counts(REJECTED, application, [()])
        self._too_large = _Counts(TOO_LARGE, application, [()])
        self._rankings = _Counts(RANKINGS, application)
        self._candidates = _Counts(CANDIDATES, application)
        self._by_model = _Counts(MODEL_RANKINGS, application)
        self._pairs = _Counts(PAIRS, application)
        self._degraded = _Counts(DEGRADED, application, [(reason,) for reason in get_args(Degraded)])
        self._latency = _Histogram(LATENCY, application)
        self._queue = _Histogram(QUEUE, application, [()])
        self._stage = _Histogram(STAGE, application, [(stage,) for stage in BATCHES])
        self._batch = _Histogram(BATCH, application, [()])
        # By experiment, arm, rung and model.
        self._num_rankings: Counter[tuple[str, str, str, str]] = Counter()
        self._num_candidates: Counter[tuple[str, str, str]] = Counter()
        # By experiment, arm and bucket.
        self._num_within: Counter[tuple[str, str, int]] = Counter()
        # By bucket.
        self._num_queued: Counter[int] = Counter()
        self._num_dropped = self._num_too_large = 0
        self._oldest_ms = 0.0
        self._version = ""
        self._flushed = time.monotonic()

    def ranked(self, slate: Slate, latency_ms: float) -> None:
        """Count a ranking; takes about 2 µs."""
        query, stage_ms = slate.query, slate.stage_ms
        experiment, arm, rung = query.experiment or "", query.arm.name, slate.rung
        self._num_rankings[experiment, arm, rung, slate.model or ""] += 1
        self._num_candidates[experiment, arm, rung] += len(query.candidates)
        self._num_within[experiment, arm, bisect_left(BOUNDS_MS, latency_ms)] += 1
        queue_ms = latency_ms - stage_ms["features"] - stage_ms["score"]
        self._num_queued[bisect_left(BOUNDS_MS, queue_ms)] += 1
        for reason in slate.degraded:
            self._degraded.add((reason,))

    def refused(self, latency_ms: float) -> None:
        """Count a refused ranking and its latency."""
        self._refused.observe((), latency_ms)

    def rejected(self, num_records: int) -> None:
        """Count records of a batch that were rejected before they reached Ingest."""
        self._rejected.add((), num_records)

    def batch(self, num_candidates: int, stage_ms: Mapping[str, float]) -> None:
        """Count a batch and its stage times."""
        self._batch.observe((), num_candidates)
        for stage in BATCHES:
            self._stage.observe((stage,), stage_ms[stage])

    def tick(self, moment: Moment) -> None:
        """Flush the buffered values to Ray once a second; called several times a second."""
        self._oldest_ms = max(self._oldest_ms, moment.freshness_ms or 0.0)
        for (new, old), sums in moment.pairs.items():
            for measure, value in sums.items():
                self._pairs.add((new, old, measure), value)
        if time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            self._flush(moment)
            self._flushed = time.monotonic()

    def _flush(self, moment: Moment) -> None:
        if moment.freshness_ms is not None:
            self._freshness.set(self._oldest_ms)
        self._oldest_ms = 0.0
        self._kill_switch.set(float(moment.kill_switch))
        self._level.set(moment.level)
        if moment.model != self._version and self._version:
            # Ray keeps exporting a gauge's last value.
            self._model.set(0.0, (self._version,))
        self._version = moment.model or ""
        if self._version:
            self._model.set(1.0, (self._version,))
        self._dropped.add((), moment.num_dropped - self._num_dropped)
        self._num_dropped = moment.num_dropped
        self._too_large.add((), moment.num_too_large - self._num_too_large)
        self._num_too_large = moment.num_too_large
        for (experiment, arm, rung, model), count in self._num_rankings.items():
            self._rankings.add((experiment, arm, rung), count)
            self._by_model.add((model,), count)
        for labels, count in self._num_candidates.items():
            self._candidates.add(labels, count)
        for (experiment, arm, bucket), count in self._num_within.items():
            self._latency.add((experiment, arm), bucket, count)
        for bucket, count in self._num_queued.items():
            self._queue.add((), bucket, count)
        for gathered in (self._num_rankings, self._num_candidates, self._num_within, self._num_queued):
            gathered.clear()
        counts = (
            self._rankings,
            self._candidates,
            self._by_model,
            self._degraded,
            self._dropped,
            self._too_large,
            self._rejected,
            self._pairs,
        )
        for metric in counts:
            metric.flush()
        for histogram in (self._latency, self._queue, self._stage, self._batch, self._refused):
            histogram.flush()


class IngestMetrics:
    """Metrics of Ingest: records taken, commits and rollbacks."""

    def __init__(self, application: str) -> None:
        known = ("exposure_dropped", "roll_failed", "late", "time_ahead", "clock_step", "segment_damaged")
        self._records = _Counts(RECORDS, application, [(kind,) for kind in known])
        self._lag = _Histogram(EVENT_LAG, application, [()])
        self._commit = _Histogram(COMMIT, application, [()])
        self._unrolled = _Gauge(UNROLLED, application)
        self._rollbacks = _Counts(ROLLBACKS, application, [(kind,) for kind in get_args(Kind)])
        self._flushed = time.monotonic()

    def rolled_back(self, kind: Kind) -> None:
        """Count a rollback."""
        self._rollbacks.add((kind,))
        self._rollbacks.flush()

    def tick(self, tally: Tally) -> None:
        """Count the records taken since the last call; called at least once a second."""
        for kind, count in tally.counts.items():
            self._records.add((kind,), count)
        for lag_ms in tally.event_lags_ms:
            self._lag.observe((), lag_ms)
        for took_ms in tally.commits_ms:
            self._commit.observe((), took_ms)
        if time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            self._flushed = time.monotonic()
            self._unrolled.set(tally.num_unflushed)
            for metric in (self._records, self._lag, self._commit):
                metric.flush()


class _Gauge:
    def __init__(self, metric: Metric, application: str) -> None:
        self._labels = metric.labels
        self._record = recorder(metric, metric.labels, application)

    def set(self, value: float, labels: Labels = ()) -> None:
        self._record(value, dict(zip(self._labels, labels, strict=True)))


class _Counts:
    """Counter by labels.

    Prometheus sees no increase in a first sample, so the `known` labels start at 0.
    """

    def __init__(self, metric: Metric, application: str, known: Iterable[Labels] = ()) -> None:
        self._add = recorder(metric, metric.labels, application)
        self._labels = metric.labels
        self._gathered: defaultdict[Labels, float] = defaultdict(float)
        for labels in known:
            self._add(0, self._tags(labels))

    def add(self, labels: Labels, count: float = 1) -> None:
        self._gathered[labels] += count

    def flush(self) -> None:
        for labels, count in self._gathered.items():
            if count:
                self._add(count, self._tags(labels))
        self._gathered.clear()

    def _tags(self, labels: Labels) -> dict[str, str]:
        return dict(zip(self._labels, labels, strict=True))


class _Histogram:
    """Histogram by labels; all buckets of a label start together at 0."""

    def __init__(self, metric: Metric, application: str, known: Iterable[Labels] = ()) -> None:
        self._add = recorder(metric, (*metric.labels, "le"), application)
        self._labels = (*metric.labels, "le")
        self._bounds = metric.bounds
        self._named = (*map(str, metric.bounds), "+Inf")
        self._begun: set[Labels] = set()
        # By labels and bucket index.
        self._gathered: Counter[tuple[Labels, int]] = Counter()
        for labels in known:
            self._begin(labels)

    def observe(self, labels: Labels, value: float) -> None:
        self.add(labels, bisect_left(self._bounds, value), 1)

    def add(self, labels: Labels, bucket: int, count: int) -> None:
        self._gathered[labels, bucket] += count

    def flush(self) -> None:
        for labels in {labels for labels, _ in self._gathered}:
            self._begin(labels)
            within = 0
            for bucket, bound in enumerate(self._named):
                within += self._gathered[labels, bucket]
                if within:
                    self._add(within, self._tags(labels, bound))
        self._gathered.clear()

    def _begin(self, labels: Labels) -> None:
        if labels not in self._begun:
            self._begun.add(labels)
            for bound in self._named:
                self._add(0, self._tags(labels, bound))

    def _tags(self, labels: Labels, bound: str) -> dict[str, str]:
        return dict(zip(self._labels, (*labels, bound), strict=True))


def recorder(metric: Metric, labels: tuple[str, ...], application: str) -> Record:
    """Return a function that sets a gauge, or increments a counter, with labels."""
    from ray.util import metrics

    kind = metrics.Gauge if metric.kind == "gauge" else metrics.Counter
    registered = kind(metric.name, metric.what, (APPLICATION, *labels))
    # A counter's public method refuses 0.
    record: Record = registered.set_default_tags({APPLICATION: application})._record
    return record
