"""Test that the page of `freshness` names what was left behind below its verdict."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.measure.measure import RequestLog
from loadtest.measure.service import Outcome
from loadtest.report.freshness import freshness_findings, freshness_numbers, write_freshness

FAILED = {"errors": 0, "error_kinds": {}, "p50_ms": 5.0, "p99_ms": 20.0}


@pytest.fixture
def probes():
    log = RequestLog()
    for at_s in np.linspace(0, 30, 100).tolist():
        log.add(at_s, 1.0, 150.0, Outcome("shown", True, True), 3)
    return {"candidate": log.requests(), "viewer": log.requests()}


def test_what_was_left_behind_stands_below_the_banner(tmp_path, probes):
    report = {
        "verdict": "held",
        "reasons": [],
        "url": "http://x",
        "seconds": 30,
        "freshness_ms": freshness_numbers(probes),
        "answered_freshness_ms": {"p99": 12.0},
        "rank": {"rps": 900.0, "target_rps": 900, "requests": 27_000, "full_share": 1.0, **FAILED},
        "events": {
            "acknowledged_per_s": 500.0,
            "target_per_s": 500,
            "posts": 9,
            "events_a_post": 20,
            **FAILED,
        },
        "left_behind": ["3 candidates"],
        "machine": {"cores": 2},
    }
    write_freshness(tmp_path / "out", report, probes)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<p>the p99 from event to ranking is 150.0\xa0ms.</p>" in page
    assert "<li>left behind: 3 candidates</li>" in page
    assert "left behind: 3 candidates" in str(freshness_findings(report))
