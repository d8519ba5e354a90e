"""Tests of the report folder of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from loadtest.measure.cluster import ClusterSample
from loadtest.measure.measure import RequestLog
from loadtest.measure.service import Outcome
from loadtest.measure.timeline import timeline
from loadtest.report.plots import distribution
from loadtest.report.run import findings, make_report, report_run
from loadtest.workload.profiles import load_profile, load_slo
from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing

PROFILE = load_profile("headline", target_rps=100, warmup_s=1, duration_s=3)
SLO = load_slo()
# fmt: off
KEYS = {
    "profile", "url", "target_rps", "offered_rps", "rps", "candidates_per_s", "full_share", "p50_ms", "p90_ms",
    "p99_ms", "max_ms", "errors", "error_kinds", "rungs", "requests", "generator_late_ms_p99", "verdict", "reasons",
    "seconds", "slo", "machine", "phases", "steps", "watched", "latency_tail",
}
# fmt: on


FULL = Outcome("full", True, True)


URL = "http://127.0.0.1:8000"


def ended(outcome=FULL):
    log = RequestLog()
    for at_s in np.linspace(-1, 2.99, 400):
        log.add(float(at_s), 0.5, 10.0 + 5 * float(at_s), outcome, 55)
    return log.requests()


def made():
    requests = ended()
    moments = timeline(requests, PROFILE.duration_s, [], PROFILE.warmup_s)
    return make_report(PROFILE, URL, SLO, requests, moments)


def written(folder, outcome=FULL, samples=()):
    """Return the report of a run, and the page in its folder."""
    report = report_run(PROFILE, SLO, URL, ended(outcome), samples, folder)
    return report, (folder / "report.html").read_text()


def test_the_report_has_exactly_its_documented_keys():
    report = made()
    assert set(report) == KEYS
    assert set(report["machine"]) == {"cpu", "cores", "memory_gib", "python", "platform"}
    # fmt: off
    assert set(report["slo"]) == {
        "p90_ms", "p99_ms", "max_error_share", "min_full_share", "generator_late_ms_p99"
    }
    # fmt: on


def test_a_run_leaves_a_page_with_its_plots_and_the_numbers_beside_it(tmp_path):
    folder = tmp_path / "new" / "run"
    report, page = written(folder)
    # fmt: off
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html", "report.json", "timeline.csv"
    ]
    # fmt: on
    assert list(folder.parent.iterdir()) == [folder]
    assert json.loads((folder / "report.json").read_text()) == report
    assert page.count('class="plot"') == 3
    assert "Held: 100 requests/s within the limits" in page
    assert "Replicas and nodes are shown if" in page
    assert "not valid" not in page
    # fmt: off
    assert set(re.findall(r'(?:src|href)="(?!#)([^"]+)"', page.partition("<script>")[0])) == {
        "report.json", "timeline.csv"
    }
    # fmt: on


def test_a_run_in_which_nothing_was_answered_is_still_reported(tmp_path):
    report, page = written(tmp_path / "run", Outcome("HTTP 503 <b>", False))
    assert report["p50_ms"] is None
    assert "p50: not reached" in str(findings(report))
    assert "not reached" in page
    assert "HTTP 503 &lt;b&gt;" in page
    assert "503 <b>" not in page


def test_figures_of_a_late_generator_are_marked(tmp_path):
    log = RequestLog()
    for at_s in np.linspace(-1, 2.99, 400).tolist():
        log.add(at_s, 35.8, 40.0, FULL, 55)
    report_run(PROFILE, SLO, URL, log.requests(), (), tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No verdict on 100 requests/s within the limits" in page
    assert "35.8\xa0ms after they were due, and 10\xa0ms is the generator" in page
    assert page.count("not valid") == 6
    assert "<h1>Load test, profile headline</h1>" in page


def test_without_an_answer_there_is_no_plot_of_limits_alone():
    assert distribution("ms", {"answered": []}, SLO.shares()) == ""


def test_a_report_is_never_overwritten(tmp_path):
    with pytest.raises(TabrankError, match="exists already"):
        written(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused_before_the_run(tmp_path):
    with pytest.raises(TabrankError, match="/proc/out: cannot be written"):
        refuse_existing(Path("/proc/out"))
    refuse_existing(tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_summary_says_verdict_rate_and_limits():
    report = made()
    lines = str(findings(report)).splitlines()
    assert lines[:3] == [
        "Load test, profile headline: held, 3 s at http://127.0.0.1:8000",
        "  requests a second: 99.3, 100.0 offered",
        "  candidates a second, scored by the model: 5,463",
    ]
    assert "  p99: 24.8 ms, at most 100 ms" in lines


def test_what_was_watched_is_drawn_with_its_replicas(tmp_path):
    _, page = written(tmp_path / "run", samples=[ClusterSample(0.5, {"Scorer": 2}, 1)])
    assert "Scorer replicas" in page
    assert "Replicas and nodes are shown if" not in page


def test_a_level_run_is_told_without_phases():
    report = made()
    assert (len(report["phases"]), report["steps"]) == (1, [])
    assert "×1" not in str(findings(report))
