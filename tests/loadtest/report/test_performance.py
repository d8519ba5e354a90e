"""Tests of the plots of docs/performance.md."""

from __future__ import annotations

from loadtest.report.performance import write_plots

SLO = {
    "p90_ms": 50,
    "p99_ms": 100,
    "max_error_share": 0,
    "min_full_share": 0.999,
    "generator_late_ms_p99": 10,
}


def cell(viewers, candidates, batch, slate=55):
    return {
        "store": "lmdb",
        "viewers": viewers,
        "candidates": candidates,
        "batch": batch,
        "slate": slate,
        "p50_us": 200.0 / batch,
    }


def test_the_plots_of_the_document_are_made_from_the_benchmark_output(tmp_path):
    sizes = [(10_000, 10_000), (100_000, 10_000), (100_000, 1_000)]
    fetch = {
        "cells": [cell(*size, batch) for size in sizes for batch in (1, 16)],
        "sweep": [cell(100_000, 10_000, 1, slate) for slate in (55, 1_000)],
    }
    steps = [
        {"phase": "search", "kept_up": True, "rate_rps": rate, "p90_ms": rate / 40} for rate in (300, 600)
    ]
    compare = {"services": {"tabrank": {"steps": steps}, "fastapi": {"steps": steps}}, "slo": SLO}
    paths = write_plots(fetch, compare, tmp_path / "plots")
    assert sorted(path.name for path in paths) == ["candidates.svg", "latency.svg", "live.svg", "viewers.svg"]
    assert ">fastapi<" in (tmp_path / "plots" / "latency.svg").read_text()
    assert ">in batches of 16<" in (tmp_path / "plots" / "live.svg").read_text()
