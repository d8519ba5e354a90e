"""Metrics reported to Ray for rankings and records, and the table that documents them."""

from __future__ import annotations

import re
from collections import Counter
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve.config.slate import Rule, Spread
from serve.contract.metric_catalog import METRICS
from serve.ingest.writer import Tally
from serve.ranking.telemetry import Moment
from serve.runtime import metrics
from serve.runtime.metrics import IngestMetrics, RankMetrics

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


@pytest.fixture
def reported(monkeypatch):
    """All values reported to Ray, by metric and labels: a gauge's value, a counter's sum."""
    values: dict[tuple, float] = {}

    def recorder(metric, application):
        def record(value, tags):
            assert set(tags) == set(metric.labels)
            key = (metric.name, *(tags[label] for label in metric.labels))
            values[key] = value if metric.kind == "gauge" else values.get(key, 0) + value

        return record

    def send(histograms):
        """Keep the series of Prometheus: cumulative buckets and a sum."""
        for histogram in histograms:
            for labels, (counts, (total,)) in histogram.series.items():
                key = (histogram.metric.name, *labels)
                values[*key, "sum"] = total
                ends = (*map(str, histogram.metric.bounds), "+Inf")
                values.update({(*key, le): n for le, n in zip(ends, accumulate(counts), strict=True)})

    monkeypatch.setattr(metrics, "recorder", recorder)
    monkeypatch.setattr(metrics, "agent", lambda application: (send, 0.0))
    monkeypatch.setattr(metrics, "FLUSH_EVERY_S", 0.0)
    return values


def slate(
    arm="model",
    rung="full",
    model="v1",
    degraded=(),
    candidates=55,
    traffic="live",
    num_unknown=0,
    rules=(),
    num_unmet=0,
    unknown_viewer=False,
    lacks_fields=False,
    **asked,
):
    arm, candidates = SimpleNamespace(name=arm, slate=rules), ["c"] * candidates
    asked = {"model": model, "viewer": "ann"} | asked
    query = SimpleNamespace(experiment="launch", arm=arm, candidates=candidates, traffic=traffic, **asked)
    stage_ms = {"features": 2.0, "score": 5.0}
    return SimpleNamespace(
        query=query,
        rung=rung,
        model=model,
        degraded=degraded,
        stage_ms=stage_ms,
        num_unknown=num_unknown,
        num_unmet=num_unmet,
        unknown_viewer=unknown_viewer,
        lacks_fields=lacks_fields,
    )


def moment(**changes):
    healthy = {
        "freshness_ms": 90.0,
        "num_dropped": 0,
        "num_too_large": 0,
        "num_thinned": 0,
        "kill_switch": False,
        "model": "v1",
    }
    return Moment(**healthy | {"level": 0.0} | changes)


def test_places_without_a_fitting_candidate_are_counted_from_the_first_ranking_with_rules(reported):
    tab, rules = RankMetrics("tab"), (Rule(spread=Spread("candidate.host", 1, 4)),)
    for arm, num_unmet in (("model", 0), ("model", 3), ("canary", 0)):
        tab.ranked(slate(arm, rules=rules, num_unmet=num_unmet), 12.0)
    tab.ranked(slate("popular"), 12.0)
    tab.tick(moment())
    assert reported["tabrank_unmet_places", "launch", "model"] == 3
    assert reported["tabrank_unmet_places", "launch", "canary"] == 0
    assert ("tabrank_unmet_places", "launch", "popular") not in reported


def test_rankings_are_counted_by_arm_rung_and_model(reported):
    tab = RankMetrics("tab")
    tab.ranked(slate(), 12.0)
    tab.ranked(slate(), 12.0)
    tab.ranked(slate("popular", "fallback", None, ("deadline",), 10), 70.0)
    tab.tick(moment())
    assert reported["tabrank_rankings", "launch", "model", "full"] == 2
    assert reported["tabrank_rankings", "launch", "popular", "fallback"] == 1
    assert reported["tabrank_candidates", "launch", "model", "full"] == 110
    assert reported["tabrank_model_rankings", "v1"] == 2
    assert reported["tabrank_model_rankings", ""] == 1
    assert reported["tabrank_degraded", "deadline"] == 1
    # The first minute is not over.
    assert reported["tabrank_steady_rankings_per_second",] == 0
    # A counter's first sample is not an increase.
    assert reported["tabrank_degraded", "kill_switch"] == 0


def test_unknown_ids_and_missing_context_are_counted_in_live_traffic(reported):
    tab = RankMetrics("tab")
    tab.tick(moment())
    # A counter's first sample is not an increase.
    for name in ("tabrank_candidate_lookups", "tabrank_viewer_lookups", "tabrank_live_rankings"):
        assert (reported[name, "true"], reported[name, "false"]) == (0, 0)
    tab.ranked(slate(candidates=10), 12.0)
    tab.ranked(slate(candidates=10, num_unknown=4, lacks_fields=True, unknown_viewer=True), 12.0)
    # An arm without a model needs no context, and a test may make up ids.
    tab.ranked(slate("popular", model=None, candidates=3, viewer=None), 12.0)
    tab.ranked(
        slate(candidates=10, num_unknown=10, lacks_fields=True, unknown_viewer=True, traffic="test"), 12.0
    )
    tab.tick(moment())
    assert reported["tabrank_candidate_lookups", "true"] == 10 + 6 + 3
    assert reported["tabrank_candidate_lookups", "false"] == 4
    # A request without a viewer has none that could be unknown.
    assert (reported["tabrank_viewer_lookups", "true"], reported["tabrank_viewer_lookups", "false"]) == (1, 1)
    assert (reported["tabrank_live_rankings", "true"], reported["tabrank_live_rankings", "false"]) == (1, 1)


def test_the_rankings_of_a_test_are_no_steady_traffic(reported, monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now_s))
    live, tested = RankMetrics("live"), RankMetrics("tested")
    for _ in range(6):
        for tab, traffic in ((live, "live"), (tested, "test")):
            for _ in range(120):
                tab.ranked(slate(traffic=traffic), 12.0)
        now_s += 60.0
        live.tick(moment())
        rate = reported["tabrank_steady_rankings_per_second",]
        tested.tick(moment())
    assert rate == 2.0
    assert reported["tabrank_steady_rankings_per_second",] == 0.0


def test_histograms_are_in_seconds_with_all_buckets_and_a_sum(reported):
    tab = RankMetrics("tab")
    for latency_ms in (12.0, 50.0, 99.0, 5_000.0):
        tab.ranked(slate(), latency_ms)
    tab.batch(110, {"features": 2.0, "score": 5.0})
    tab.refused(0.06)
    tab.refused(3.0)
    tab.rejected(2)
    tab.tick(moment())
    latency = {
        le: reported["tabrank_latency_seconds", "launch", "model", le]
        for le in ("0.001", "0.015", "0.05", "0.1", "1.0", "+Inf")
    }
    assert latency == {"0.001": 0, "0.015": 1, "0.05": 2, "0.1": 3, "1.0": 3, "+Inf": 4}
    assert reported["tabrank_latency_seconds", "launch", "model", "sum"] == pytest.approx(5.161)
    assert reported["tabrank_records_rejected",] == 2
    assert [reported["tabrank_refused_seconds", le] for le in ("0.001", "0.005")] == [1, 2]
    # 12 ms less the 7 of its batch.
    assert reported["tabrank_queue_seconds", "0.005"] == 1
    assert [reported["tabrank_stage_seconds", "score", le] for le in ("0.002", "0.005")] == [0, 1]
    assert [reported["tabrank_batch_candidates", le] for le in ("60.0", "120.0")] == [0, 1]


def test_nothing_is_counted_twice(reported):
    tab = RankMetrics("tab")
    tab.ranked(slate(), 12.0)
    for _ in range(3):
        tab.tick(moment(num_dropped=4, num_too_large=2, num_thinned=7))
    assert reported["tabrank_rankings", "launch", "model", "full"] == 1
    assert reported["tabrank_latency_seconds", "launch", "model", "+Inf"] == 1
    assert reported["tabrank_exposures_dropped",] == 4
    assert reported["tabrank_exposures_too_large",] == 2
    assert reported["tabrank_exposures_thinned",] == 7


def test_a_version_that_is_replaced_is_in_use_no_more(reported):
    tab = RankMetrics("tab")
    tab.tick(moment())
    tab.tick(moment(model="v2", kill_switch=True, freshness_ms=None))
    assert (reported["tabrank_model_info", "v1"], reported["tabrank_model_info", "v2"]) == (0, 1)
    assert reported["tabrank_kill_switch",] == 1
    assert reported["tabrank_freshness_seconds",] == 0.09


def test_the_age_told_is_the_highest_since_the_last_time(reported, monkeypatch):
    tab = RankMetrics("tab")
    monkeypatch.setattr(metrics, "FLUSH_EVERY_S", 60.0)
    tab.tick(moment(freshness_ms=7_000.0))
    monkeypatch.setattr(metrics, "FLUSH_EVERY_S", 0.0)
    tab.tick(moment())
    assert reported["tabrank_freshness_seconds",] == 7.0
    tab.tick(moment())
    assert reported["tabrank_freshness_seconds",] == 0.09


def test_records_are_counted_with_how_late_they_came(reported):
    ingest = IngestMetrics("tab")
    ingest.tick(
        Tally(
            Counter(event=2, exposure=3),
            [90.0, 40_000.0],
            [120.0],
            5,
            4_096,
            {("m", "v1", "auc", "", "join", "yes"): 1.5},
        )
    )
    assert reported["tabrank_records", "event"] == 2
    assert reported["tabrank_records", "exposure_dropped"] == 0
    assert [reported["tabrank_event_lag_seconds", le] for le in ("0.05", "0.1", "60.0", "+Inf")] == [
        0,
        1,
        2,
        2,
    ]
    assert [reported["tabrank_commit_seconds", le] for le in ("0.1", "0.15", "+Inf")] == [0, 1, 1]
    assert reported["tabrank_unrolled_records",] == 5
    assert reported["tabrank_store_bytes",] == 4_096
    assert reported["tabrank_quality", "m", "v1", "auc", "", "join", "yes"] == 1.5


def test_the_table_is_what_the_code_has():
    rows = re.findall(r"^\| `(ray_tabrank\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", DOCS.read_text(), re.M)
    labels = [", ".join(f"`{label}`" for label in metric.labels) or "–" for metric in METRICS]
    assert rows == [(m.exported, m.kind, at, m.what) for m, at in zip(METRICS, labels, strict=True)]
