"""Rebuild of a state from the newest snapshot of a log, and of one without a snapshot."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from serve.contract.errors import TabrankError
from serve.features.kinds.affinity import Maps
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.ingest.backfill import load
from serve.log import rebuild as module
from serve.log import stream
from serve.log.reader import read_log
from serve.log.rebuild import rebuild
from serve.log.replay import Replay
from serve.log.snapshots import snapshots
from serve.log.writer import write_log
from tests.support.live_service import event
from tests.support.logging_service import assert_same_state
from tests.support.retention_service import DAYS, Kept, at, weeks
from tests.support.row_values import flat
from tests.support.small_surface import TOML, tables

CHANGED = read_surface(TOML.replace('half_life = "1h"', 'half_life = "2h"'))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    write_log(folder / "log", tables())
    Kept(folder, folder / "log").run(weeks)
    return folder


@pytest.fixture
def service(tmp_path, made):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Kept(tmp_path, None)


async def later(service):
    """Record events after the last snapshot."""
    await service.events(
        event("later1", "join", "a", "bob", at(DAYS) + 60_000),
        event("later2", "click", f"new{DAYS}", "ann", at(DAYS) + 61_000),
        {"type": "forget", "viewer": "dee", "ts_ms": at(DAYS) + 62_000},
    )


def built(service, surface=None, said=None):
    said = [] if said is None else said
    return rebuild(Schema(surface or service.surface), service.folder / "log", said.append)


class Known:
    """State with the face of a replay, for `assert_same_state`."""

    def __init__(self, state):
        self.state = state
        self.known = {"viewer": np.ones(10_000, bool), "candidate": np.ones(10_000, bool)}


def test_a_rebuild_begins_with_the_newest_snapshot(service):
    service.run(later)
    log, newest = service.folder / "log", snapshots(service.folder / "log")[-1]
    for path in sorted((log / "exposures").iterdir())[:-1]:
        path.write_bytes(b"not read again")
    said = []
    rebuilt = built(service, said=said)
    assert_same_state(service.stored(), Known(rebuilt.state))
    assert rebuilt.seq == newest.seq + 3
    assert rebuilt.coverage == {}
    assert said == [f"{log}: begins with the snapshot of 1970-04-27 00:00:52, of record {newest.seq}"]


def test_a_state_without_a_snapshot_takes_what_fits_and_says_the_rest(service):
    service.run(later)
    log, said = service.folder / "log", []
    rebuilt = built(service, CHANGED, said=said)
    schema, stored = Schema(CHANGED), service.stored()
    shutil.copytree(log, service.folder / "left", ignore=lambda *_: ["snapshots"])
    left = Replay(schema, read_log(service.folder / "left", CHANGED))
    left.finish()
    changed = next(i for i, m in enumerate(schema.kept(Maps).slots) if m.half_life_ms == 7_200_000)
    for ours, theirs in zip((rebuilt.state.viewers, rebuilt.state.candidates), stored, strict=True):
        assert set(ours.index) == set(theirs.index)
        for name, row in ours.index.items():
            given, other = flat(ours.table[row]), flat(theirs.table[theirs.index[name]])
            for field in given.keys() - {"seen_ms"}:
                wanted = other[field]
                if field.startswith(f"_state.map{changed}."):
                    wanted = flat(left.state.viewers.table[left.state.viewers.index[name]])[field]
                np.testing.assert_allclose(given[field].astype(float), wanted.astype(float), rtol=1e-9)
    since_ms = snapshots(log)[0].ts_ms
    assert rebuilt.since_ms == {
        name: since_ms if name == "topic_affinity" else None for name in CHANGED.features
    }
    assert said[-1] == (
        f"{log}: complete: 13 features. From 1970-04-18 00:00:53 on: topic_affinity (older records were deleted)"
    )


@pytest.mark.parametrize(
    ("old", "new", "lacking"),
    [
        ("[context]\n", 'mood = "category"\n\n[context]\n', set()),
        ('tags = { type = "set", max = 3 }', 'tags = { type = "set", max = 4 }', {"tags", "tag_affinity"}),
        ('half_life = "10s" }', 'half_life = "20s" }', {"joins"}),
        ('down = "leave" }', 'down = "leave", max_stay = "1h" }', {"audience"}),
    ],
)
def test_what_a_change_makes_incomplete(service, old, new, lacking):
    text = TOML.replace(old, new, 1)
    assert text != TOML
    rebuilt = built(service, read_surface(text))
    assert {name for name, since_ms in rebuilt.since_ms.items() if since_ms} == lacking


def test_a_whole_log_gives_a_changed_state_all_of_its_records(tmp_path, log_folder):
    service = Kept(tmp_path, log_folder)
    service.run(later)
    service.tend(at(DAYS + 1), keep_days=0)
    assert snapshots(tmp_path / "log")
    rebuilt = built(service, CHANGED)
    replay = Replay(Schema(CHANGED), read_log(tmp_path / "log", CHANGED))
    replay.finish()
    replay.as_served()
    assert_same_state((replay.state.viewers, replay.state.candidates), Known(rebuilt.state))
    assert set(rebuilt.since_ms.values()) == {None}


def test_a_damaged_newest_snapshot_is_refused_with_the_way_out(service):
    snapshots(service.folder / "log")[-1].file("viewer").write_bytes(b"what was left of it")
    with pytest.raises(TabrankError, match=r"damaged .* another snapshot is then used"):
        built(service)
    shutil.rmtree(snapshots(service.folder / "log")[-1].path)
    assert_same_state(service.stored(), Known(built(service).state))


def test_a_long_replay_says_how_far_it_is(log_folder, monkeypatch):
    monkeypatch.setattr(module, "REPORT_EVERY_S", 0)
    monkeypatch.setattr(stream, "VALUES_AT_ONCE", 2)
    said = []
    rebuild(Schema(read_surface(TOML)), log_folder, said.append)
    assert said[-1] == f"{log_folder}: 14 of 14 records, up to 1970-01-01 00:01:00"
    assert said[1].startswith(f"{log_folder}: ")
    assert len(said) > 4


def test_the_joins_of_a_large_log_are_those_of_a_sample(tmp_path, log_folder, monkeypatch):
    monkeypatch.setattr(stream, "SAMPLE_VALUES", 7)
    said = []
    rebuilt = rebuild(Schema(read_surface(TOML)), log_folder, said.append)
    assert said[0].startswith(f"{log_folder}, of a sample of 50.0%: ")
    assert rebuilt.coverage.get("events", 1) == 1
    parts = tables()
    other = [f"x{id_}" for id_ in parts["candidates"]["id"].to_pylist()]
    parts["candidates"] = parts["candidates"].set_column(0, "id", [other])
    write_log(tmp_path / "other", parts)
    monkeypatch.setattr(stream, "SAMPLE_VALUES", 1 << 19)
    with pytest.raises(TabrankError, match="none of 8 shown candidates are in candidates"):
        rebuild(Schema(read_surface(TOML)), tmp_path / "other", said.append)


def test_load_answers_since_when_each_feature_is_complete(service, monkeypatch):
    (service.folder / "changed.toml").write_text(CHANGED.text)
    monkeypatch.chdir(service.folder)
    said = []
    since_ms = load(CHANGED, Path("log"), "lmdb:changed", Path(), said.append, named="changed.toml")[
        "complete_since_ms"
    ]
    assert since_ms.pop("topic_affinity") == snapshots(service.folder / "log")[0].ts_ms
    assert set(since_ms.values()) == {None}
    assert any("From 1970-04-18 00:00:53 on: topic_affinity" in line for line in said)
