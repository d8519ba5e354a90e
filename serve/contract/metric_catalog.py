"""Catalog of the service's metrics: names, labels and descriptions.

`docs/metrics.md` holds the same table.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

# Upper bounds of histogram buckets; one bucket above the last, +Inf, is added. They are floats, so
# that `str(bound)` is the value of the label `le`.
BOUNDS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04),
    *(0.05, 0.06, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0),
)
LAG_BOUNDS_S = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0, 3_600.0)
# Candidates; a shipped batch holds at most 1,760.
BATCH_BOUNDS = (1.0, 10.0, 30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1_760.0, 3_520.0)


class Metric(NamedTuple):
    """Name, description and labels of one metric.

    Ray adds the prefix `ray_`, and the suffix `_total` to a counter. A histogram has the series
    `_bucket` (cumulative over the label `le`), `_sum` and `_count`. Times are in seconds.
    """

    name: str
    what: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    is_gauge: bool = False

    @property
    def kind(self) -> Literal["counter", "gauge", "histogram"]:
        """The kind; a metric with bounds is a histogram."""
        return "gauge" if self.is_gauge else "histogram" if self.bounds else "counter"

    @property
    def exported(self) -> str:
        """Return the name on the metrics page, without the suffix of a histogram's series."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


RANKINGS = Metric("tabrank_rankings", "Answered rankings.", ("experiment", "arm", "rung"))
CANDIDATES = Metric("tabrank_candidates", "Ranked candidates.", ("experiment", "arm", "rung"))
MODEL_RANKINGS = Metric(
    "tabrank_model_rankings",
    "Rankings by the version that scored them; empty where no version scored.",
    ("model",),
)
DEGRADED = Metric("tabrank_degraded", "Rankings with a degraded answer, by each reason.", ("reason",))
LATENCY = Metric(
    "tabrank_latency_seconds",
    "Time of a ranking, from the read body to the answer.",
    ("experiment", "arm"),
    bounds=BOUNDS_S,
)
QUEUE = Metric(
    "tabrank_queue_seconds",
    "Wait of a ranking for a batch and the event loop (latency minus `features` and `score`).",
    bounds=BOUNDS_S,
)
STAGE = Metric(
    "tabrank_stage_seconds",
    "Time of a batch: its `features` (fetch and features) or `score` (the call of Scorer).",
    ("stage",),
    bounds=BOUNDS_S,
)
BATCH = Metric("tabrank_batch_candidates", "Candidates of a batch.", bounds=BATCH_BOUNDS)
FRESHNESS = Metric(
    "tabrank_freshness_seconds", "Greatest age of a replica's features in the last second.", is_gauge=True
)
KILL_SWITCH = Metric("tabrank_kill_switch", "1 while a replica answers all in popular order.", is_gauge=True)
LEVEL = Metric(
    "tabrank_ladder_level",
    "Load shedding of a replica: the lost share of the limit of waiting candidates.",
    is_gauge=True,
)
REFUSED = Metric(
    "tabrank_refused_seconds",
    "Time from the arrival of a ranking to its refusal with 429 by a full replica.",
    bounds=BOUNDS_S,
)
HTTP = Metric(
    "tabrank_http_server_request_duration_seconds",
    "Time of an HTTP request, from its headers to its answer, as OpenTelemetry defines it.",
    ("http_request_method", "http_route", "http_response_status_code"),
    bounds=BOUNDS_S,
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
    "tabrank_event_lag_seconds",
    "From an event's own time until it is durable; a replica sees it 0.2 s later.",
    bounds=LAG_BOUNDS_S,
)
COMMIT = Metric(
    "tabrank_commit_seconds", "Time of a call of Ingest until it is durable.", bounds=LAG_BOUNDS_S
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
