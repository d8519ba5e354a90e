"""Replaying the log of a service gives its final state and the features that it ranked with."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import serve.ranking.service
from serve.contract.errors import StoreUnavailable
from serve.features.rows import Schema
from serve.ingest.backfill import load
from serve.log.reader import read_log
from serve.log.replay import Replay
from tests.support.live_service import Live
from tests.support.logging_service import (
    Logging,
    assert_same_state,
    assert_same_sums,
    assert_served_features,
    busy_hour,
)


@pytest.fixture
def service(tmp_path, log_folder):
    service = Logging(tmp_path, log_folder)
    service.run(busy_hour)
    return service


def test_a_replay_of_the_log_ends_in_the_state_of_the_store(service):
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)


def test_every_ranking_saw_the_features_that_the_log_gives(service):
    assert len(assert_served_features(service, service.replay())) == 60


def test_a_store_filled_from_the_log_equals_the_served_one(service):
    before = service.stored()
    load(service.surface, service.folder / "log", "lmdb:store", service.folder)
    assert_same_sums(before, service.stored())


def test_a_replay_of_a_sampled_log_gives_the_served_state_and_features(tmp_path, log_folder, monkeypatch):
    # As if the buffer were always half full.
    monkeypatch.setattr("serve.ranking.exposure_buffer.CALM", -1.0)
    service = Logging(tmp_path, log_folder)
    service.run(busy_hour)
    assert service.fetcher.exposure_buffer.num_thinned > 20
    one_in = read_log(service.folder / "log", service.surface).exposures["one_in"].to_pylist()
    assert 5 in one_in
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)
    assert len(assert_served_features(service, service.replay())) > 5
    before = service.stored()
    load(service.surface, service.folder / "log", "lmdb:store", service.folder)
    assert_same_sums(before, service.stored())


def test_a_log_that_a_service_began_needs_no_viewers_and_no_events(tmp_path):
    service = Live(tmp_path)

    async def scenario(service):
        await service.events({"type": "candidate", "id": "a", "ts_ms": 1_000, "fields": {"topic": "jazz"}})
        await service.rank("ann", ["a"], now_ms=2_000)

    service.run(scenario)
    log = read_log(tmp_path / "served", service.surface)
    assert (len(log.viewers), len(log.events), len(log.exposures)) == (0, 0, 1)
    replay = Replay(Schema(service.surface), log)
    replay.finish()
    assert replay.known["viewer"][replay.state.viewers.index["ann"]]


def test_a_field_that_a_surface_gained_is_in_its_later_segments(service):
    folder = service.folder / "log" / "candidates"
    (first,) = folder.glob("*.parquet")
    pq.write_table(pq.read_table(first).drop_columns(["topic"]), first)
    later = {"id": ["late"], "topic": ["jazz"], "seq": [10_000], "stated": [["topic"]], "removed": [False]}
    pq.write_table(pa.table(later), folder / f"{10_000:020d}.parquet")
    topics = read_log(service.folder / "log", service.surface).candidates
    assert dict(zip(topics["id"].to_pylist(), topics["topic"].to_pylist(), strict=True))["late"] == "jazz"


def test_a_ranking_without_the_store_is_logged_without_features(service):
    async def scenario(service):
        service.fetcher.live.read = unavailable
        await service.rank(request_id="down", now_ms=99_000_000)
        service.fetcher.live.read = type(service.fetcher.live).read.__get__(service.fetcher.live)
        await service.rank(request_id="up", now_ms=99_000_001)

    def unavailable(viewers):
        raise StoreUnavailable("gone")

    service.run(scenario)
    rows = pq.read_table(service.folder / "log" / "exposures").to_pylist()
    has_features = {row["request_id"]: row["numeric"] is not None for row in rows}
    assert (has_features["down"], has_features["up"]) == (False, True)


@pytest.mark.parametrize(
    ("share", "every_s", "logged"), [(1e-9, 600, [1]), (1e-9, 0, [1, 2, 3]), (0.0, 0, [])]
)
def test_a_small_service_logs_the_features_of_live_rankings_now_and_then(
    tmp_path, log_folder, monkeypatch, share, every_s, logged
):
    monkeypatch.setattr(serve.ranking.service, "LOG_FEATURES_EVERY_S", every_s)
    service = Live(tmp_path, log_folder, log_features=share)

    async def scenario(service):
        for i in range(4):
            # Test traffic neither needs them nor takes the turn of a viewer.
            await service.rank(request_id=str(i), traffic="live" if i else "test")

    service.run(scenario)
    table = pq.read_table(tmp_path / "served" / "exposures")
    has_features = [int(row["request_id"]) for row in table.to_pylist() if row["numeric"] is not None]
    assert sorted(has_features) == logged
