"""The benchmark of the writer counts CPU by store and batch, and touches no store with rows."""

from __future__ import annotations

import json

import pytest

import serve.bench.writer as bench
from serve.contract.errors import TabrankError


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "BATCHES", (2, 5))
    monkeypatch.setattr(bench, "VIEWERS", 20)
    monkeypatch.setattr(bench, "CANDIDATES", 60)


def test_each_store_and_batch_has_its_cpu_and_rate(small, tmp_path):
    result = bench.bench_writer([f"lmdb:{tmp_path}/other"], 10, rounds=3)
    cells = result["cells"]
    assert [(cell["store"], cell["batch"]) for cell in cells] == [("lmdb", 2), ("lmdb", 5)] * 2
    for cell in cells:
        assert cell["commit_us"] > 0
        assert cell["segment_us"] > 0
        assert 0 < cell["least"] <= cell["rankings_s"] <= cell["most"]
    json.dumps(result)
    assert bench.table(result).count(" a commit ") == 4


def test_a_store_with_rows_is_left_alone(small, tmp_path):
    address = f"lmdb:{tmp_path}/other"
    bench.bench_writer([address], 5, rounds=1)
    with pytest.raises(TabrankError, match="has rows; name an empty store"):
        bench.bench_writer([address], 5, rounds=1)
