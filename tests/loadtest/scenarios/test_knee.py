"""Tests of `knee` and `compare` with real services, and of bad input of every benchmark."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from loadtest.__main__ import app
from tests.support.loadtest_command import ENVIRONMENT, ROOT, interrupted, left

pytestmark = pytest.mark.integration

NUMBERS = {"knee_rps", "candidates_per_s", "full_share", "p50_ms", "p90_ms", "p99_ms"}
# Every machine holds these limits: the shipped ones depend on the machine.
SCRIPT = """
import json, sys
from pathlib import Path
from loadtest.scenarios import bench, compare
from loadtest.scenarios.compare import run_compare
from loadtest.scenarios.knee import run_knee
from loadtest.workload.profiles import Slo
from loadtest.scenarios.search import KneePlan
from loadtest.targets import processes
from loadtest.targets.workspace import Workspace

processes.SETTLE_S = 0.5
bench.load_slo = lambda: Slo(8000, 9000, 1.0, 0.0, 9000)
steps = {"warm_up_s": 1, "step_warmup_s": 0.5, "step_s": 1, "confirm_s": 2}
plan = KneePlan(start_rps=20, highest_rps=20, warm_up_rps=10, **steps)
emit = lambda line: print(line, file=sys.stderr)
command, work, out = sys.argv[1], Workspace(Path(sys.argv[2])), Path(sys.argv[3])
if command == "knee":
    report = run_knee(work, Path("cluster.yaml"), 55, out, emit, plan)
else:
    compare.WARM_UP_S = 1
    for name in ("closed loop × 32", "closed loop × 64", "open loop, 100/s", "open loop, 900/s"):
        del compare.LOADS[name]
    report = run_compare(work, out, emit, rounds=2, seconds=1)
print(json.dumps(report))
"""


@pytest.fixture
def bench(bench_work, tmp_path):
    """Return a function that runs a benchmark over the small workspace and returns its report."""

    def run(command):
        out = tmp_path / "out"
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, command, str(bench_work.path), str(out)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2_000:]
        report = json.loads(done.stdout)
        assert json.loads((out / "report.json").read_text()) == report
        assert "</html>" in (out / "report.html").read_text()
        return report

    return run


@pytest.mark.proof
def test_knee_measures_the_shipped_service_and_leaves_nothing_running(bench, bench_work):
    report = bench("knee")
    assert set(report) >= NUMBERS | {"steps", "machine", "seconds", "slo", "candidates"}
    assert report["knee_rps"] == 20
    assert report["candidates_per_s"] == pytest.approx(20 * 55, rel=0.3)
    assert [step["phase"] for step in report["steps"]] == ["look", "look", "search", "confirm", "confirm"]
    assert "raylet" in report["processes"]
    assert left(bench_work) == []


@pytest.mark.proof
def test_compare_measures_both_services_and_leaves_nothing_running(bench, bench_work):
    report = bench("compare")
    assert report["verdict"] == "held", report["reasons"]
    assert list(report["loads"]) == ["closed loop × 1", "closed loop × 8", "open loop, 10/s"]
    assert {"machine", "seconds", "slo", "candidates"} <= set(report)
    for name, found in report["services"].items():
        assert found["memory_mib"] > 50, name
    for load in report["loads"].values():
        assert list(load["services"]) == ["fastapi", "tabrank"]
        for name, found in load["services"].items():
            assert found["rps"] > 0, name
            assert found["cpu_us"]["all"] > 0, name
        assert load["services"]["fastapi"]["cpu_us"]["uvicorn worker"] > 0
        assert load["services"]["tabrank"]["cpu_us"]["FeatureFetch"] > 0
        assert load["ratios"]["rps"]["lowest"] > 0
    assert left(bench_work) == []


def test_an_interrupted_knee_ends_its_service(bench_work, tmp_path):
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "bench").symlink_to(bench_work.path)
    knee = ("knee", "--config", ROOT / "cluster.yaml", "--json", "--out", "out")
    code, printed, message = interrupted(tmp_path, lambda: left(bench_work), *knee)
    assert code == 2
    assert "interrupted" in message
    assert "Traceback" not in message
    assert printed == ""
    assert left(bench_work) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.no_ray
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("knee", "--config", "none.yaml"), "none.yaml: cannot be read"),
        (("compare", "--out", "."), "exists already"),
        (("chaos", "--fault", "scorr"), "--fault scorr: unknown fault; use scorer, "),
    ],
)
def test_what_cannot_be_run_is_one_sentence(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 2
    printed = json.loads(done.stdout)
    assert printed["verdict"] == "void"
    assert message in printed["reasons"][0]
    assert printed["reasons"] == [done.stderr.strip()]
