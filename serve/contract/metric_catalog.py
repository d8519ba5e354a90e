"""The service's metrics: every name, what it tells, and by which labels. `docs/metrics.md` has the same table."""

from __future__ import annotations

from typing import Literal, NamedTuple

BOUNDS_MS = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 100, 150, 250, 500, 1000)  # above the last: +Inf
LAG_BOUNDS_MS = (50, 100, 150, 200, 300, 500, 750, 1_000, 2_000, 5_000, 10_000, 60_000, 600_000, 3_600_000)
BATCH_BOUNDS = (1, 10, 30, 60, 120, 240, 480, 960, 1_760, 3_520)  # candidates; the shipped cap is 1,760

Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """One metric, by the name that the code gives it.

    Ray adds the prefix `ray_`, and `_total` to what is no gauge. A histogram is made of counters, cumulative over the
    label `le` as Prometheus has it: `histogram_quantile` takes it. Ray's own histograms replay each observation in
    its agent, 40 µs of CPU each.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    what: str
    bounds: tuple[int, ...] = ()

    @property
    def exported(self) -> str:
        """The name that Prometheus sees."""
        return f"ray_{self.name}" + ("" if self.kind == "gauge" else "_total")


RANKINGS = Metric("tabrank_rankings", "counter", ("experiment", "arm", "rung"), "Answered rankings.")
CANDIDATES = Metric("tabrank_candidates", "counter", ("experiment", "arm", "rung"), "Ranked candidates.")
MODEL_RANKINGS = Metric(
    "tabrank_model_rankings",
    "counter",
    ("model",),
    "Rankings by the version that scored them; empty: none did.",
)
DEGRADED = Metric(
    "tabrank_degraded", "counter", ("reason",), "Rankings that are not what was assigned, by each reason."
)
LATENCY = Metric(
    "tabrank_latency_ms",
    "histogram",
    ("experiment", "arm"),
    "Rankings answered within `le` ms, from the read body to the answer.",
    BOUNDS_MS,
)
QUEUE = Metric(
    "tabrank_queue_ms",
    "histogram",
    (),
    "Rankings whose latency without `features` and `score` was up to `le` ms: the wait for a batch, and for the loop.",
    BOUNDS_MS,
)
STAGE = Metric(
    "tabrank_stage_ms",
    "histogram",
    ("stage",),
    "Batches whose `features` (fetch and features) or `score` (the call of Scorer) took up to `le` ms.",
    BOUNDS_MS,
)
BATCH = Metric("tabrank_batch_candidates", "histogram", (), "Batches of up to `le` candidates.", BATCH_BOUNDS)
FRESHNESS = Metric(
    "tabrank_freshness_ms", "gauge", (), "How old the features of a replica were at most in the last second."
)
KILL_SWITCH = Metric("tabrank_kill_switch", "gauge", (), "1 while a replica answers all in popular order.")
LEVEL = Metric(
    "tabrank_ladder_level",
    "gauge",
    (),
    "How far a replica is down the ladder: up to 1 answers are partial, up to 2 they are fallback.",
)
REFUSED = Metric(
    "tabrank_refused_ms",
    "histogram",
    (),
    "Rankings refused with 429 for lack of room, within `le` ms of being seen.",
    BOUNDS_MS,
)
MODEL = Metric("tabrank_model_info", "gauge", ("model",), "1 for the promoted version that a replica uses.")
DROPPED = Metric(
    "tabrank_exposures_dropped", "counter", (), "Answered rankings that were not logged: too many waited."
)
TOO_LARGE = Metric(
    "tabrank_exposures_too_large",
    "counter",
    (),
    "Answered rankings that were not logged: one alone was too large for a call.",
)
REJECTED = Metric(
    "tabrank_records_rejected", "counter", (), "Records of `/v1/events` that were invalid or beyond a limit."
)
RECORDS = Metric(
    "tabrank_records",
    "counter",
    ("kind",),
    "Records that Ingest took: event, exposure, viewer, candidate, forget, ended; and what it did not take: "
    "duplicate, rejected, late, exposure_dropped; and roll_failed, time_ahead, clock_step, segment_damaged.",
)
EVENT_LAG = Metric(
    "tabrank_event_lag_ms",
    "histogram",
    (),
    "Events that were durable up to `le` ms after their own time; a replica sees them 0.2 s later.",
    LAG_BOUNDS_MS,
)
COMMIT = Metric(
    "tabrank_commit_ms", "histogram", (), "Calls of Ingest that were durable within `le` ms.", LAG_BOUNDS_MS
)
UNROLLED = Metric(
    "tabrank_unrolled_records", "gauge", (), "Durable records that are in the journal and not yet in the log."
)
PAIRS = Metric(
    "tabrank_pairs",
    "counter",
    ("new", "old", "measure"),
    "Sums over rows that two versions scored, the shadow, the canary or a fresh one and the one it would replace: "
    "`python -m serve models shift` reads them.",
)
ROLLBACKS = Metric("tabrank_rollbacks", "counter", ("kind",), "Versions that the service took back, by why.")
METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All there are. Each has the label `application` too."""
