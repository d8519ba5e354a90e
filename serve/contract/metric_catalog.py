"""Catalog of the service's metrics: names, labels and descriptions.

`docs/metrics.md` holds the same table.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

# Upper bounds of histogram buckets; one bucket above the last, +Inf, is added.
BOUNDS_MS = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 100, 150, 250, 500, 1000)
LAG_BOUNDS_MS = (50, 100, 150, 200, 300, 500, 750, 1_000, 2_000, 5_000, 10_000, 60_000, 600_000, 3_600_000)
# Candidates; a shipped batch holds at most 1,760.
BATCH_BOUNDS = (1, 10, 30, 60, 120, 240, 480, 960, 1_760, 3_520)


class Metric(NamedTuple):
    """Name, description and labels of one metric.

    Ray adds the prefix `ray_`, and the suffix `_total` unless the metric is a gauge. A histogram
    consists of counters, cumulative over the label `le` as in Prometheus, so `histogram_quantile`
    reads it. Ray's own histograms replay each observation in its agent, which takes 40 µs of CPU.
    """

    name: str
    what: str
    labels: tuple[str, ...] = ()
    bounds: tuple[int, ...] = ()
    is_gauge: bool = False

    @property
    def kind(self) -> Literal["counter", "gauge", "histogram"]:
        """The kind; a metric with bounds is a histogram."""
        return "gauge" if self.is_gauge else "histogram" if self.bounds else "counter"

    @property
    def exported(self) -> str:
        """Return the name under which Prometheus scrapes the metric."""
        return f"ray_{self.name}" + ("" if self.is_gauge else "_total")


RANKINGS = Metric("tabrank_rankings", "Answered rankings.", ("experiment", "arm", "rung"))
CANDIDATES = Metric("tabrank_candidates", "Ranked candidates.", ("experiment", "arm", "rung"))
MODEL_RANKINGS = Metric(
    "tabrank_model_rankings",
    "Rankings by the version that scored them; empty where no version scored.",
    ("model",),
)
DEGRADED = Metric("tabrank_degraded", "Rankings with a degraded answer, by each reason.", ("reason",))
LATENCY = Metric(
    "tabrank_latency_ms",
    "Rankings answered within `le` ms, from the read body to the answer.",
    ("experiment", "arm"),
    bounds=BOUNDS_MS,
)
QUEUE = Metric(
    "tabrank_queue_ms",
    "Rankings that waited up to `le` ms for a batch and the event loop (latency minus `features` and `score`).",
    bounds=BOUNDS_MS,
)
STAGE = Metric(
    "tabrank_stage_ms",
    "Batches whose `features` (fetch and features) or `score` (the call of Scorer) took up to `le` ms.",
    ("stage",),
    bounds=BOUNDS_MS,
)
BATCH = Metric("tabrank_batch_candidates", "Batches of up to `le` candidates.", bounds=BATCH_BOUNDS)
FRESHNESS = Metric(
    "tabrank_freshness_ms", "Greatest age of a replica's features in the last second.", is_gauge=True
)
KILL_SWITCH = Metric("tabrank_kill_switch", "1 while a replica answers all in popular order.", is_gauge=True)
LEVEL = Metric(
    "tabrank_ladder_level",
    "Load shedding of a replica: the lost share of the limit of waiting candidates.",
    is_gauge=True,
)
REFUSED = Metric(
    "tabrank_refused_ms",
    "Rankings refused with 429 by a full replica, within `le` ms of their arrival.",
    bounds=BOUNDS_MS,
)
MODEL = Metric(
    "tabrank_model_info", "1 for the promoted version that a replica uses.", ("model",), is_gauge=True
)
DROPPED = Metric("tabrank_exposures_dropped", "Answered rankings not logged: the exposure buffer was full.")
TOO_LARGE = Metric(
    "tabrank_exposures_too_large",
    "Answered rankings not logged: a single exposure exceeded the size of a call.",
)
REJECTED = Metric("tabrank_records_rejected", "Records of `/v1/events` that were invalid or beyond a limit.")
RECORDS = Metric(
    "tabrank_records",
    "Records that Ingest accepted (event, exposure, viewer, candidate, forget, ended) and did not accept "
    "(duplicate, rejected, late, exposure_dropped); also expired, roll_failed, time_ahead, "
    "clock_step, segment_damaged.",
    ("kind",),
)
EVENT_LAG = Metric(
    "tabrank_event_lag_ms",
    "Events that were durable up to `le` ms after their own time; a replica sees them 0.2 s later.",
    bounds=LAG_BOUNDS_MS,
)
COMMIT = Metric(
    "tabrank_commit_ms", "Calls of Ingest that were durable within `le` ms.", bounds=LAG_BOUNDS_MS
)
UNROLLED = Metric(
    "tabrank_unrolled_records",
    "Durable records that are in the journal and not yet in the log.",
    is_gauge=True,
)
STORE = Metric("tabrank_store_bytes", "Size of the store; of Redis, the memory of its server.", is_gauge=True)
PAIRS = Metric(
    "tabrank_pairs",
    "Sums over rows scored both by a new version (shadow, canary or fresh) and by the version it would replace; "
    "`python -m serve models shift` reads them.",
    ("new", "old", "measure"),
)
QUALITY = Metric(
    "tabrank_quality",
    "Sums over rankings whose label window has closed, by the version that scored; `cell` is one of its "
    "training scores.",
    ("arm", "model", "measure", "cell"),
)
ROLLBACKS = Metric("tabrank_rollbacks", "Versions rolled back, by cause.", ("kind",))
# Every metric of this module. Each also has the label `application`.
METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
