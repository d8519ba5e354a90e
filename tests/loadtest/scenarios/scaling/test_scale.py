"""Tests of `python -m loadtest scale` with the real service, briefly."""

from __future__ import annotations

import csv
import json

import pytest
from loadtests import ROOT, left, run_loadtest

pytestmark = pytest.mark.integration


@pytest.mark.proof
def test_replicas_come_and_go_under_load_and_no_request_fails(bench_work, tmp_path):
    out = tmp_path / "out"
    short = ("--part", "replicas", "--cycles", "1", "--hold", "10", "--out", out)
    code, report, messages = run_loadtest(ROOT, "scale", "--work", bench_work.path, *short)
    assert code == 0, messages[-3_000:]
    part = report["parts"]["replicas"]
    assert report["verdict"] == "held"
    assert (part["errors"], part["error_kinds"]) == (0, {})
    assert part["requests"] == pytest.approx(0.6 * report["capacity_rps"] * 20, rel=0.02)
    assert [change["replicas"] for change in part["changes"]] == [3, 1]
    assert json.loads((out / "report.json").read_text()) == report
    assert 'class="plot"' in (out / "report.html").read_text()
    rows = list(csv.DictReader((out / "replicas" / "timeline.csv").read_text().splitlines()))
    for name in ("FeatureFetch_replicas", "Scorer_replicas"):
        seen = [row[name] for row in rows]
        assert (seen[0], max(seen), seen[-1]) == ("1", "3", "1")
    assert left(bench_work) == []
