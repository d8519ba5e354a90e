"""Content of a demo's report.json, as the demo makes it."""

from __future__ import annotations

from dataclasses import asdict

from loadtest.workload.profiles import load_slo
from serve.operate.host.machine import describe_machine


def reason(label, contribution, value=0.31, unit=None):
    known = {"feature": label.replace(" ", "_"), "label": label, "typical": 0.05}
    return {**known, "value": value, "unit": unit, "contribution": contribution}


REASONS = [reason("joined rooms on this topic", 0.834), reason("people in the room", -0.4, 3.0, "people")]


def room(position, was, name=None, reasons=REASONS):
    place = {"candidate": name or f"s{position}", "position": position, "was": was, "topic": "music"}
    return {**place, "score": 0.05000000074505806, "reasons": reasons}


def load_report(verdict="held", target_rps=900.0, **changes):
    tail = [[60.0, 0.0001], [18.0, 0.01], [8.0, 0.1], [1.0, 0.9]]
    numbers = {"rps": 900.2, "candidates_per_s": 49_513.0, "full_share": 1.0, "errors": 0, "seconds": 30.0}
    latency = {"p50_ms": 3.8, "p90_ms": 8.4, "p99_ms": 18.5, "latency_tail": tail, "slo": asdict(load_slo())}
    return {
        "profile": "headline",
        "target_rps": target_rps,
        **numbers,
        **latency,
        "verdict": verdict,
        "reasons": [],
        **changes,
    }


def demo_report(**changes):
    train = {
        "test_rows": 90_000,
        "measures": {
            "expected_labels": {"model": 0.083, "popular": 0.052},
            "ndcg@10": {"model": 0.39, "popular": 0.24},
        },
        "intervals": {
            "expected_labels": {"model": [0.08, 0.09], "popular": [0.05, 0.06]},
            "ndcg@10": {"model": [0.36, 0.41], "popular": [0.22, 0.26]},
        },
        "paired": {"expected_labels": 0.031, "expected_labels_se": 0.004, "ndcg@10": 0.15, "se": 0.01},
        "reliability": [[0.01, 0.01], [0.1, 0.12], [0.2, 0.19]],
    }
    first = [*(room(place, place) for place in range(1, 9)), room(20, 20, "new-space")]
    last = [room(1, 2, "s2"), room(2, 1, "s1"), room(3, 20, "new-space")]
    topic = {
        "topic": "cars",
        "viewer": {"before": 20, "after": 3},
        "control": {"before": 9, "after": 9},
        "rose": True,
        "seconds": 0.312,
        "rankings": {"before": first, "after": last},
    }
    load = load_report()
    made = {"train": train, "topic": topic, "load": load, "headline": load, "machine": describe_machine()}
    return made | changes
