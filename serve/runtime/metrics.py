"""How an answer becomes numbers: gathered in dictionaries, and told Ray once a second."""

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

FLUSH_EVERY_S = 1.0  # a metric call costs microseconds, and is paid once for all rankings of so long
APPLICATION = "application"
BATCHES = ("features", "score")  # the stages that a batch goes through
Labels = tuple[str, ...]
Tell = Callable[[float, dict[str, str]], None]


class RankMetrics(Metrics):
    """Counts what one replica of FeatureFetch answers."""

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
        self._num_rankings: Counter[tuple[str, str, str, str]] = Counter()  # experiment, arm, rung, model
        self._num_candidates: Counter[tuple[str, str, str]] = Counter()
        self._num_within: Counter[tuple[str, str, int]] = Counter()  # experiment, arm, bucket
        self._num_queued: Counter[int] = Counter()  # by bucket
        self._num_dropped = self._num_too_large = 0
        self._oldest_ms = 0.0
        self._version = ""
        self._flushed = time.monotonic()

    def ranked(self, slate: Slate, latency_ms: float) -> None:
        """Count a ranking; about 2 µs."""
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
        """Count a refusal."""
        self._refused.observe((), latency_ms)

    def rejected(self, num_records: int) -> None:
        """Count records of a batch that were rejected before Ingest saw them."""
        self._rejected.add((), num_records)

    def batch(self, num_candidates: int, stage_ms: Mapping[str, float]) -> None:
        """Count a batch."""
        self._batch.observe((), num_candidates)
        for stage in BATCHES:
            self._stage.observe((stage,), stage_ms[stage])

    def tick(self, moment: Moment) -> None:
        """Tell what has gathered; called several times a second."""
        self._oldest_ms = max(self._oldest_ms, moment.freshness_ms or 0.0)
        for (new, old), sums in moment.pairs.items():
            for measure, value in sums.measures().items():
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
            self._model.set(0.0, (self._version,))  # Ray goes on with a gauge's last value
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
    """Counts what Ingest took and how long that took."""

    def __init__(self, application: str) -> None:
        known = ("exposure_dropped", "roll_failed", "late", "time_ahead", "clock_step", "segment_damaged")
        self._records = _Counts(RECORDS, application, [(kind,) for kind in known])
        self._lag = _Histogram(EVENT_LAG, application, [()])
        self._commit = _Histogram(COMMIT, application, [()])
        self._unrolled = _Gauge(UNROLLED, application)
        self._rollbacks = _Counts(ROLLBACKS, application, [(kind,) for kind in get_args(Kind)])
        self._flushed = time.monotonic()

    def rolled_back(self, kind: Kind) -> None:
        """A version was taken back."""
        self._rollbacks.add((kind,))
        self._rollbacks.flush()

    def tick(self, tally: Tally) -> None:
        """Count what was taken since the last call; it comes at least once a second."""
        for kind, count in tally.counts.items():
            self._records.add((kind,), count)
        for lag_ms in tally.event_lags_ms:
            self._lag.observe((), lag_ms)
        for took_ms in tally.commits_ms:
            self._commit.observe((), took_ms)
        if time.monotonic() - self._flushed >= FLUSH_EVERY_S:
            self._flushed = time.monotonic()
            self._unrolled.set(tally.num_unrolled)
            for metric in (self._records, self._lag, self._commit):
                metric.flush()


class _Gauge:
    def __init__(self, metric: Metric, application: str) -> None:
        self._labels = metric.labels
        self._tell = told(metric, metric.labels, application)

    def set(self, value: float, labels: Labels = ()) -> None:
        self._tell(value, dict(zip(self._labels, labels, strict=True)))


class _Counts:
    """A counter by labels. Prometheus sees no increase in a first sample: what is `known` begins at 0."""

    def __init__(self, metric: Metric, application: str, known: Iterable[Labels] = ()) -> None:
        self._add = told(metric, metric.labels, application)
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
    """Counts by labels and bucket; the buckets of a label all begin together, at 0."""

    def __init__(self, metric: Metric, application: str, known: Iterable[Labels] = ()) -> None:
        self._add = told(metric, (*metric.labels, "le"), application)
        self._labels = (*metric.labels, "le")
        self._bounds = metric.bounds
        self._named = (*map(str, metric.bounds), "+Inf")
        self._begun: set[Labels] = set()
        self._gathered: Counter[tuple[Labels, int]] = Counter()  # by labels and the bucket's place
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


def told(metric: Metric, labels: tuple[str, ...], application: str) -> Tell:
    """How to tell Ray a value with its labels: what a gauge is, or what comes to a counter."""
    from ray.util import metrics

    kind = metrics.Gauge if metric.kind == "gauge" else metrics.Counter
    rays = kind(metric.name, metric.what, (APPLICATION, *labels)).set_default_tags({APPLICATION: application})
    tell: Tell = rays._record  # the public call of a counter refuses 0
    return tell
