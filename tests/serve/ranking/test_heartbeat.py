"""A replica tells a store whose writer lives from one that nobody writes any more."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from dataclasses import replace

import pytest

from serve.ingest.writer import Ingester
from serve.ranking.service import RankingService
from serve.ranking.upkeep import await_writer, refresh
from serve.stores.lmdb import HEARTBEAT
from tests.support.live_service import Live, event

OTHER = "lmdb:other"


@pytest.fixture
def service(tmp_path, log_folder, monkeypatch):
    monkeypatch.setattr("serve.ingest.writer.COMMIT_EVERY_S", 0.01)
    monkeypatch.setattr("serve.ingest.writer.BEAT_EVERY_S", 0.05)
    monkeypatch.setattr("serve.stores.candidate_table.BEAT_WITHIN_S", 0.6)
    return Live(tmp_path, log_folder, clock="wall", stale_after_ms=200)


def stopped_long_ago(service):
    """Let the last heartbeat in the store be an hour old."""
    (path,) = (service.folder / "store").glob(f"*/{HEARTBEAT}")
    os.utime(path, (time.time() - 3_600,) * 2)


async def until(is_true):
    async with asyncio.timeout(10):
        while not is_true():
            await asyncio.sleep(0.02)


def test_features_age_once_the_writer_writes_another_store(service, monkeypatch):
    # At once, a writer with records takes back a log that it lost.
    monkeypatch.setattr("serve.ingest.writer.TAKE_BACK_S", 0.0)
    stopped_long_ago(service)

    async def ready(service):
        await refresh(service.fetcher)
        found = (await service.client.get("/readyz")).json()
        is_told = "stale_features" in [one["name"] for one in found["diagnoses"]]
        return found["store"], is_told, service.fetcher.health.is_behind

    async def scenario(service):
        fetcher = service.fetcher
        await until(lambda: fetcher.health.freshness_ms < 200)
        # A replica and a writer that have nothing to do.
        idle_ms = []
        for _ in range(10):
            await asyncio.sleep(0.1)
            idle_ms.append(fetcher.health.freshness_ms)
        idle, other = await ready(service), Ingester(replace(service.args, store=OTHER), service.folder)
        await other.take_over()
        await until(lambda: fetcher.health.freshness_ms > 600)
        away = await ready(service)
        monkeypatch.setattr("serve.ingest.writer.TAKE_BACK_S", 30.0)
        stale = await service.rank()
        await other.finish()
        await until(lambda: fetcher.health.freshness_ms < 200)
        return max(idle_ms), idle, away, stale, await ready(service), await service.rank()

    shutil.copytree(service.folder / "store", service.folder / "other")
    idle_ms, idle, away, stale, back, again = service.run(scenario)
    assert idle_ms < 500
    assert idle == back == ("fresh", False, False)
    assert away == ("unavailable", True, True)
    assert (stale["rung"], stale["degraded"]) == ("partial", ["stale_features"])
    assert stale["freshness_ms"] > 600
    assert (again["rung"], again["degraded"]) == ("full", [])


def test_records_that_are_known_leave_a_heartbeat_too(service):
    async def scenario(service):
        await service.events(event("e1", ts_ms=None))
        stopped_long_ago(service)
        service.ingester.take_over = lambda: asyncio.sleep(0)
        assert (await service.events(event("e1", ts_ms=None)))["duplicates"] == 1
        (path,) = (service.folder / "store").glob(f"*/{HEARTBEAT}")
        return time.time() - path.stat().st_mtime

    assert service.run(scenario) < 60


def test_a_replica_that_starts_first_waits_for_the_writer(service):
    stopped_long_ago(service)

    async def scenario():
        fetcher = RankingService(service.args, service.folder, service)
        waiting = asyncio.create_task(await_writer(fetcher))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        writer = Ingester(service.args, service.folder)
        await writer.take_over()
        async with asyncio.timeout(5):
            await waiting
        assert fetcher.health.freshness_ms < 400
        await writer.finish()
        fetcher.live.close()

    asyncio.run(scenario())


def test_with_the_event_clock_nobody_waits_for_a_heartbeat(service):
    stopped_long_ago(service)
    service.args = replace(service.args, clock="event")

    async def scenario():
        fetcher = RankingService(service.args, service.folder, service)
        async with asyncio.timeout(5):
            await await_writer(fetcher)
        assert fetcher.health.freshness_ms < 1_000
        fetcher.live.close()

    asyncio.run(scenario())
