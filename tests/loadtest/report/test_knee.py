"""Tests of the report of `knee`: keys, page and summary."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pytest

from loadtest.errors import LoadtestError
from loadtest.report.knee import knee_findings, step_line, write_knee
from loadtest.scenarios.knee import knee_verdict, run_knee
from loadtest.scenarios.search import KneeStep
from loadtest.targets.workspace import Workspace
from loadtest.workload.profiles import load_slo
from serve.operate.host.machine import describe_machine

CONDITIONS = {"candidates": 55, "slo": asdict(load_slo()), "machine": describe_machine(), "seconds": 200.0}


def step(rate_rps, p99_ms, verdict="held", **changes):
    latencies = {"p50_ms": 5.0, "p90_ms": 9.0, "p99_ms": p99_ms}
    numbers = {"rps": rate_rps, "full_share": 1.0, **latencies, "errors": 0, "generator_late_ms_p99": 1.0}
    return {**KneeStep(rate_rps, verdict, [], True, "search", numbers).plain(), **changes}


def found(knee_rps):
    steps = [step(300, 12.0), step(600, None, "not held", reasons=["p99 <b>"]), step(knee_rps or 10, 30.0)]
    confirmed = (
        {"candidates_per_s": 55.0 * knee_rps, "full_share": 1.0, "p50_ms": 5.0, "p90_ms": 9.0, "p99_ms": 30.0}
        if knee_rps
        else dict.fromkeys(("candidates_per_s", "full_share", "p50_ms", "p90_ms", "p99_ms"))
    )
    footprint = {"start_s": 9.1, "memory_mib": 900, "num_processes": 12, "processes": ["raylet"]}
    spread = [{"p99_ms": 28.0, "full_share": 0.9998}, {"p99_ms": None, "full_share": 1.0}]
    confirming = {"confirming": spread if knee_rps else []}
    verdict = "held" if knee_rps else "not held"
    return {"verdict": verdict, "knee_rps": knee_rps, **confirmed, **confirming, **footprint, "steps": steps}


def test_the_folder_of_a_knee_holds_the_report_and_a_page_of_its_own(tmp_path):
    report = {**found(450.0), "config": "cluster.yaml", **CONDITIONS}
    write_knee(tmp_path / "out", report)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The knee: 450 requests a second" in page
    assert page.count('class="plot"') == 1
    assert all(f">{name}<" in page for name in ("p50", "p90", "p99"))
    assert re.findall(r'(?:src|href)="([^"#]+)"', page.partition("<script>")[0]) == ["report.json"]


def test_a_service_without_a_knee_is_reported_too(tmp_path):
    report = {**found(None), "config": "cluster.yaml", **CONDITIONS}
    write_knee(tmp_path / "out", report)
    assert "the lowest tried was 10 req/s" in str(knee_findings(report))


def test_the_spread_of_the_confirmation_is_in_the_page_and_in_the_last_line(tmp_path):
    report = {**found(450.0), "config": "cluster.yaml", **CONDITIONS}
    write_knee(tmp_path / "out", report)
    page = (tmp_path / "out" / "report.html").read_text()
    shown = "28.0 ms with 99.980%, not reached with 100.000%"
    assert shown in page
    assert shown in str(knee_findings(report))


def test_the_summary_names_what_was_found():
    lines = str(knee_findings({**found(450.0), **CONDITIONS})).splitlines()
    assert lines[0] == "The knee: 450 requests a second of 55 candidates: held, found in 3 min 20 s"
    assert "  p99: 30.0 ms, at most 100 ms" in lines


def test_a_step_is_one_line():
    assert step_line(step(300.0, 12.0)) == "  300 req/s: held, p50 5.0 ms, p90 9.0 ms, p99 12.0 ms"
    late = step(300.0, None, "void", reasons=["the generator was late"], phase="confirm")
    assert step_line(late).endswith(" p90 9.0 ms, p99 not reached (the generator was late)")
    assert step_line(step(50.0, 9.9, phase="warm-up")).startswith("  50 req/s (warm-up): p50")


def test_a_file_that_is_not_there_is_told_before_anything_is_prepared(tmp_path):
    lines = []
    with pytest.raises(LoadtestError, match=r"none\.yaml: cannot be read"):
        run_knee(Workspace(tmp_path / "work"), tmp_path / "none.yaml", 55, tmp_path / "out", lines.append)
    assert lines == []


@pytest.mark.parametrize(
    ("knee_rps", "lowest", "verdict", "headline"),
    [
        (450.0, "held", "held", "Held: a knee at 450 requests/s"),
        (None, "not held", "not held", "Not held: a rate within the limits"),
        (None, "void", "void", "No verdict on a rate within the limits"),
    ],
)
def test_a_service_without_a_knee_does_not_hold_and_says_why(tmp_path, knee_rps, lowest, verdict, headline):
    steps = [
        step(300, None, "void"),
        step(10, 200.0, lowest, reasons=["the lowest step's reason"]),
    ]
    report = {**found(knee_rps), "steps": steps, "verdict": verdict, **CONDITIONS}
    made = [KneeStep(one["rate_rps"], one["verdict"], [], True, "search", {}) for one in steps]
    assert knee_rps or knee_verdict(made) == verdict
    write_knee(tmp_path / "out", report)
    page = (tmp_path / "out" / "report.html").read_text()
    assert headline in page
    assert ("<p>no rate held; the lowest tried was 10 req/s.</p>" in page) is (knee_rps is None)
    assert ("<li>the lowest step" in page) is (knee_rps is None)
    assert ("not valid" in page) is (verdict == "void")
