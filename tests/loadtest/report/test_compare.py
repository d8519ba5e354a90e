"""Tests of the report of `compare`: its table, ratios and reasons, on a page and in a terminal."""

from __future__ import annotations

import json
from dataclasses import asdict

from loadtest.report.compare import compare_findings, window_line, write_compare
from loadtest.workload.profiles import load_slo
from serve.operate.host.machine import describe_machine

MACHINE = describe_machine()


def service(rps, kept_up=True):
    cpu_us = {"all": 1250.4, "Scorer": 250.4, "rest": 1000.0}
    numbers = {"rps": rps, "p50_ms": 4.25, "p99_ms": None, "late_s": 3}
    return {
        "kept_up": kept_up,
        **numbers,
        "ended": {"full": 900, "HTTP 429": 7},
        "cpu_us": cpu_us,
        "windows": [],
    }


def comparison():
    services = {
        "fastapi": service(1000.0, kept_up=False),
        "tabrank": service(1500.0),
    }
    clear = {"median": 1.5, "lowest": 1.4, "highest": 1.6, "meaningless": False}
    unclear = {"median": 1.5, "lowest": 1.0, "highest": 2.0, "meaningless": True}
    ratios = {"rps": clear, "p50_ms": unclear, "p99_ms": None}
    load = {"connections": 0, "rate_rps": 900.0, "services": services, "ratios": ratios}
    times = {
        "rounds": 5,
        "window_s": 6,
        "services": {key: {} for key in services},
        "loads": {"open loop, 900/s": load},
    }
    verdict = {"verdict": "not held", "reasons": ["fastapi gave <no> full answer"]}
    return {**verdict, **times, "slo": asdict(load_slo()), "machine": MACHINE}


def test_the_folder_holds_the_report_and_a_page_that_names_the_machine(tmp_path):
    write_compare(tmp_path / "out", comparison())
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == comparison()
    page = (tmp_path / "out" / "report.html").read_text().replace(' class="number"', "")
    assert "5 windows of 6 s at each load" in page
    assert "Not held: tabrank and FastAPI" in page
    assert "fastapi gave &lt;no&gt; full answer" in page
    assert "<td>1,500.0</td><td>4.2</td><td>–</td><td>7 HTTP 429</td><td>3</td>" in page
    assert "all 1,250, Scorer 250, rest 1,000" in page
    assert all(f"{key} {value}" in page for key, value in MACHINE.items())


def test_the_summary_names_who_falls_behind_and_calls_a_wide_ratio_meaningless():
    summary = str(compare_findings(comparison()))
    assert "fastapi (does not keep up)" in summary
    assert (
        "open loop, 900/s: requests/s 1.50 (1.40 to 1.60), p50 ms meaningless (1.00 to 2.00), p99 ms –"
        in summary
    )


def test_a_window_is_one_line():
    assert window_line("tabrank", service(1500.0)) == "tabrank: requests/s 1,500.0, p50 ms 4.2, p99 ms –"
