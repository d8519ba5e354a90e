"""A log that commit 20e0ccf1 wrote stays readable.

The folder `earlier` holds that log and its surface: an hour of rankings and events by a service,
which went on with an imported log. All features were logged.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.ingest.backfill import load
from serve.log.reader import TABLES, read_log
from serve.log.replay import Replay
from serve.log.segments import last_arrival_ms, log_end
from serve.log.type_ledger import checked_types, fields_of
from serve.stores.factory import open_store
from tests.support.logging_service import assert_same_state, assert_served_features, stored_rows

# The service numbered 164 records, from 2 on.
LAST = 165


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(Path(__file__).parent / "earlier", tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_it_is_read_with_its_numbers_and_its_features(folder):
    surface = load_surface(str(folder / "surface.toml"))
    log = read_log(folder / "log", surface, test_traffic=True)
    assert sum(len(getattr(log, name)) - getattr(log, name)["seq"].null_count for name in TABLES) == 164
    assert (log.last_seq, log_end(folder / "log")) == (LAST, LAST)
    assert last_arrival_ms(folder / "log") > 0
    assert checked_types(folder / "log", surface.text) == fields_of(surface.text)
    service = SimpleNamespace(log_path=folder / "log", log=lambda: log)
    assert len(assert_served_features(service, Replay(Schema(surface), log))) == 60


def test_a_store_is_filled_from_it(folder):
    surface = load_surface(str(folder / "surface.toml"))
    load(surface, folder / "log", "lmdb:store", folder)
    schema = Schema(surface)
    store = open_store("lmdb:store", surface.name, schema.fingerprint, base=folder, writable=False)
    assert store.seq() == LAST
    replay = Replay(schema, read_log(folder / "log", surface, test_traffic=True))
    replay.finish()
    assert_same_state(stored_rows(schema, store), replay)
