"""Tests of `python -m loadtest scale` with the real service, briefly, and with bad input."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loadtest.targets.processes import MARKER

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[4]


def run(work, *arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "loadtest", "scale", "--work", str(work), "--json", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
        check=False,
    )


def left(work_id):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER, "").startswith(work_id):
                found.append(process.name())
        except (psutil.Error, OSError):
            pass
    return found


@pytest.mark.proof
def test_replicas_come_and_go_under_load_and_no_request_fails(bench_work, tmp_path):
    out = tmp_path / "out"
    short = ("--part", "replicas", "--cycles", "1", "--hold", "10", "--out", str(out))
    done = run(bench_work.path, *short)
    assert done.returncode == 0, done.stderr[-3_000:]
    report = json.loads(done.stdout)
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
    assert left(bench_work.id) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--part", "replica"), "--part replica: unknown part; use replicas, step, nodes"),
        (("--config", "none.yaml", "--part", "step"), "none.yaml: cannot be read"),
        (("--out", "."), "exists already"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(bench_work, tmp_path, arguments, message):
    done = run(bench_work.path, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in json.loads(done.stdout)["error"]
    assert "Traceback" not in done.stderr


def test_the_pace_of_the_throttled_scorer_is_read_strictly():
    code = (
        "import sys; from serve.contract.errors import TabrankError; from loadtest.targets.throttled import build\n"
        "for args in ({}, {'ms_per_batch': -1, 'us_per_candidate': 1}, {'ms_per_batc': 1}):\n"
        "    try: build({'surface': 'spaces', **args})\n"
        "    except TabrankError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    missing, negative, misspelt = done.stdout.splitlines()
    assert missing == "args: the key 'ms_per_batch' is missing"
    assert negative == "args.ms_per_batch: -1 must be from 0 to 10000"
    assert "unknown key 'ms_per_batc'; did you mean 'ms_per_batch'" in misspelt
