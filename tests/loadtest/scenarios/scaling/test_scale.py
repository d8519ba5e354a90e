"""Tests of `python -m loadtest scale` with the real service, briefly, and of its pace."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

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
    assert "<svg" in (out / "report.html").read_text()
    rows = list(csv.DictReader((out / "replicas" / "timeline.csv").read_text().splitlines()))
    for name in ("FeatureFetch_replicas", "Scorer_replicas"):
        seen = [row[name] for row in rows]
        assert (seen[0], max(seen), seen[-1]) == ("1", "3", "1")
    assert left(bench_work) == []


@pytest.mark.no_ray
def test_the_pace_of_the_throttled_scorer_is_read_strictly():
    code = (
        "import sys; from serve.contract.errors import TabrankError; from loadtest.targets.throttled import build\n"
        "for args in ({}, {'ms_per_batch': -1, 'us_per_candidate': 1}, {'ms_per_batc': 1}):\n"
        "    try: build({'surface': 'spaces', **args})\n"
        "    except TabrankError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    missing, also_missing, negative, misspelt = done.stdout.splitlines()
    assert missing == "args: the key 'ms_per_batch' is missing"
    assert also_missing == "args: the key 'us_per_candidate' is missing"
    assert negative == "args.ms_per_batch: -1 must be from 0 to 10000"
    assert "unknown key 'ms_per_batc'; did you mean 'ms_per_batch'" in misspelt
