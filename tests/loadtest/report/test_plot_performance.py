"""Tests of the plots of docs/performance.md."""

from __future__ import annotations

from tests.support.plot_performance import write_plots


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
    fetch = {"cells": [cell(*size, batch) for size in sizes for batch in (1, 16)]}
    paths = write_plots(fetch, tmp_path / "plots")
    assert sorted(path.name for path in paths) == ["live.svg", "viewers.svg"]
    assert ">in batches of 16<" in (tmp_path / "plots" / "live.svg").read_text()
