"""Content of the report.json that a demo writes."""

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


def load_report(verdict="held", **changes):
    tail = [[60.0, 0.0001], [18.0, 0.01], [8.0, 0.1], [1.0, 0.9]]
    return {
        "profile": "headline",
        "url": "http://127.0.0.1:8000",
        "offered_rps": 900.0,
        "rps": 900.2,
        "candidates_per_s": 49_513.0,
        "full_share": 1.0,
        "requests": 27_000,
        "errors": 0,
        "error_kinds": {},
        "rungs": {"full": 27_000},
        "phases": [{}],
        "steps": [],
        "seconds": 30.0,
        "p50_ms": 3.8,
        "p90_ms": 8.4,
        "p99_ms": 18.5,
        "max_ms": 61.0,
        "generator_late_ms_p99": 1.0,
        "latency_tail": tail,
        "slo": asdict(load_slo()),
        "machine": describe_machine(),
        "verdict": verdict,
        "reasons": [],
        **changes,
    }


def demo_report(**changes):
    paired = {"expected_labels": 0.031, "expected_labels_se": 0.004, "ndcg@10": 0.15, "se": 0.01}
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
    load, train = load_report(), {"paired": paired}
    made = {"train": train, "topic": topic, "load": load, "headline": load, "machine": describe_machine()}
    return made | {"seconds": 200.0} | changes
