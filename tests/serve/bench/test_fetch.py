from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from serve.bench.fetch import Sizes, bench_fetch, table
from serve.bench.synthetic import RowMaker, viewer_id
from serve.contract.errors import TabrankError
from serve.features.kinds.affinity import Maps
from serve.features.rows import Schema
from serve.features.surface import load_surface
from tests.support.memory_store import MemoryStore
from tests.support.store_access import read_viewers

SMALL = Sizes(viewers=(20, 30, 40), candidates=(60, 70, 80), batches=(1, 4))


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve.bench.fetch._REQUESTS_A_ROUND", 10)
        return bench_fetch(SMALL, rounds=1)


def test_every_viewers_candidates_and_batch_has_its_percentiles(result):
    points = {(c["viewers"], c["candidates"], c["batch"]) for c in result["cells"]}
    assert len(points) == len(result["cells"]) == 3 * 3 * 2
    for cell in result["cells"]:
        assert 0 < cell["p50_us"] <= cell["p99_us"]
        assert cell["batches"] > 0
    assert result["features"] == len(load_surface("spaces").features)
    json.dumps(result)


def test_the_table_names_what_was_measured(result):
    text = table(result)
    assert "40 viewers      80 live" in text


def test_made_up_viewers_are_distinct_and_full():
    schema, store = Schema(load_surface("spaces")), MemoryStore()
    RowMaker(schema, seed=0).fill_store(store, 50)
    packed = read_viewers(store, [viewer_id(i) for i in range(51)])
    assert packed[50] is None
    assert len(set(packed[:50])) == 50
    rows = np.frombuffer(b"".join(packed[:50]), schema.viewer)
    maps = schema.kept(Maps)
    for part in (*(maps.of(rows, slot)["keys"] for slot in maps.slots), rows["follows"]):
        assert all(0 not in keys and len(set(keys)) == len(keys) for keys in part.tolist())
    assert np.isfinite(rows["_state"]["sums"]).all()


def test_live_candidates_are_found_by_their_ids():
    rows = RowMaker(Schema(load_surface("spaces")), seed=0).live_table(100)
    assert len(rows) == 100
    assert (rows.find(["space0", "space99", "space100"]) == [1, 100, 0]).all()
    assert (rows.table["host"][1:101] != 0).all()


def test_a_disk_without_room_is_said_before_anything_is_written():
    before = set(Path(tempfile.gettempdir()).glob("tabrank-bench-*"))
    with pytest.raises(TabrankError, match=r"need \d+\.\d GB in .* free; set TMPDIR"):
        bench_fetch(Sizes(viewers=(10**13,)))
    assert set(Path(tempfile.gettempdir()).glob("tabrank-bench-*")) == before


def test_the_command_has_help():
    done = subprocess.run(
        [sys.executable, "-m", "serve", "bench", "fetch", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert "--json" in done.stdout
