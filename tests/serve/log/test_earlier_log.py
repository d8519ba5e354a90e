"""A log of commit a3f54bd8 stays readable: its `simulate` began it, and its service went on.

The folder `earlier` holds that log and the surface with which it was served. It was made by
`training simulate --rows 300 --viewers 12 --days 0.1` and 24 rankings of that commit's service,
whose features were all logged. In the service's folder the names of segments have one number.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.ingest.backfill import load
from serve.log.compaction import compact
from serve.log.reader import TABLES, read_log
from serve.log.replay import Replay
from serve.log.segments import Segments, last_arrival_ms, log_end
from serve.stores.factory import open_store
from tests.support.logging_service import assert_same_state, assert_served_features, stored_rows

EARLIER = Path(__file__).parent / "earlier"
# The service numbered 577 records, from 2 on.
LAST = 578


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(params=["surface.toml", "spaces"])
def surface(request, folder):
    """The surface with which the log was served, and the shipped one with which it was begun.

    Since then the shipped one has two more fields, of which such a log knows nothing.
    """
    return load_surface(request.param if request.param == "spaces" else str(folder / request.param))


def test_it_is_read_with_its_numbers(folder, surface):
    log = read_log(folder / "log", surface, test_traffic=True)
    # Rows, and those of them without a number: what `simulate` wrote.
    assert {
        name: (len(table), table["seq"].null_count) for name in TABLES if (table := getattr(log, name))
    } == {
        "viewers": (16, 12),
        "candidates": (1_927, 1_450),
        "exposures": (30, 6),
        "events": (110, 38),
    }
    assert (log.last_seq, log_end(folder / "log")) == (LAST, LAST)
    assert last_arrival_ms(folder / "log") == 1_796_006_559_104


def test_a_store_that_is_filled_from_it_holds_the_state_of_its_replay(folder, surface):
    load(surface, folder / "log", "lmdb:store", folder)
    schema = Schema(surface)
    store = open_store("lmdb:store", surface.name, schema.fingerprint, base=folder, writable=False)
    assert store.seq() == LAST
    replay = Replay(schema, read_log(folder / "log", surface, test_traffic=True))
    replay.finish()
    assert_same_state(stored_rows(schema, store), replay)


def test_a_replay_gives_the_features_that_were_served(folder):
    surface = load_surface(str(folder / "surface.toml"))
    log = read_log(folder / "log", surface, test_traffic=True)
    service = SimpleNamespace(log_path=folder / "log", log=lambda: log)
    assert len(assert_served_features(service, Replay(Schema(surface), log))) == 24


def test_it_is_merged_by_a_service_that_goes_on_with_it(folder, monkeypatch):
    monkeypatch.setattr("serve.log.compaction.MIN_SEGMENTS", 2)
    surface = load_surface(str(folder / "surface.toml"))
    before = read_log(folder / "log", surface)
    compact(Segments(folder / "log", {}))
    after = read_log(folder / "log", surface)
    assert all(getattr(after, name) == getattr(before, name) for name in TABLES)
    merged = [path.name for path in (folder / "log" / "events").iterdir()]
    assert merged == [f"{2:020d}-{LAST:020d}-{0:010d}.parquet"]
