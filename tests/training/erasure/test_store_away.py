"""Erase viewers from a log whose store cannot be opened; then the store comes back."""

from __future__ import annotations

import asyncio
import platform
import re
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import redis

from serve.contract.errors import StoreUnavailable, TabrankError
from serve.contract.records import Event
from serve.features.rows import Schema
from serve.ingest.backfill import load
from serve.ingest.takeover import Claim
from serve.log.lease import read_lease
from serve.log.writer import write_log
from serve.storage.bucket import place
from serve.stores.factory import open_store
from tests.support.live_service import event
from tests.support.logging_service import Logging, assert_same_state
from tests.support.s3_server import named
from tests.support.small_surface import tables
from training.erasure.forget import forget

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]
RETURN_MS = 90_000


class Away(Logging):
    """Service on a log and a store that a test takes away and brings back."""

    def __init__(self, folder, log, store, server):
        self.server = server
        write_log(place(log, folder), tables())
        super().__init__(folder, None, store=store)
        self.args = replace(self.args, log=log, keep_log_days=0)
        self.state = Schema(self.surface).fingerprint
        self.fill()

    def fill(self, **more):
        load(self.surface, self.log_path, self.args.store, self.folder, **more)

    def take_away(self):
        if self.server:
            self.server.kill()
        else:
            (self.folder / "store").rename(self.folder / "away")

    def bring_back(self):
        if self.server:
            self.server.start()
        else:
            (self.folder / "away").rename(self.folder / "store")

    def lose(self):
        if self.server:
            with redis.Redis.from_url(self.server.url) as client:
                client.flushall()
        else:
            shutil.rmtree(self.folder / "store")

    def lease(self):
        return read_lease(self.log_path)

    def forget(self, **more):
        return forget(self.log_path, ["ann", "two\nlines"], self.folder / "models", **more)

    def rows(self, table):
        """Return the rows of all segments of a table."""
        paths = sorted((self.log_path / table).glob("*.parquet"))
        return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def service(request, tmp_path):
    """Return the service with LMDB and a log on the disk, or else with Redis and a bucket."""
    if getattr(request, "param", "lmdb") == "lmdb":
        return Away(tmp_path, "log", "lmdb:store", None)
    request.getfixturevalue("bucket")
    server = request.getfixturevalue("empty_redis_server")
    return Away(tmp_path, named("log"), server.url, server)


# Away, given up and back: of a store that a restart empties, and of one that is a folder.
with_both = pytest.mark.parametrize("service", ["lmdb", "redis"], indirect=True)


async def served(service):
    """Serve two viewers; a part of their records is in the log, and the rest in the journal."""
    for now_ms in (51_000, 61_000):
        await service.rank("ann", now_ms=now_ms, request_id=f"ann-{now_ms}")
        await service.rank("bob", now_ms=now_ms, request_id=f"bob-{now_ms}")
        await service.fetcher.exposure_buffer.flush()
        await service.events(
            {"type": "viewer", "id": "two\nlines", "ts_ms": now_ms, "fields": {"language": "en"}},
            event(f"ann-join{now_ms}", viewer="ann", ts_ms=now_ms),
            event(f"bob-join{now_ms}", viewer="bob", ts_ms=now_ms),
            event(f"ann-click{now_ms}", "click", viewer=None, ts_ms=now_ms, request_id="ann-51000"),
            event(f"ann-again{now_ms}", "click", viewer=None, ts_ms=now_ms, request_id=f"ann-{now_ms}"),
        )
        if now_ms == 51_000:
            await asyncio.to_thread(service.ingester.flush_journal)


async def killed(service):
    await served(service)
    service.ingester.flush_journal = service.ingester._release = lambda: None


def traces(service):
    """Return the rows of the log that say whose they were."""
    every = [row for table in ("viewers", "exposures", "events") for row in service.rows(table)]
    return [row for row in every if re.search(r"ann|two\\nlines", repr(row))]


def refusal(service):
    """Return why the service takes no events."""

    async def refused(service):
        with pytest.raises(StoreUnavailable) as error:
            await service.ingester.take([Event("e", "bob", "a", "join", 1)], 9)
        return str(error.value)

    return service.run(refused)


@with_both
def test_a_store_with_a_journal_is_erased_from_only_when_given_up_and_flushed_without_them(service):
    service.run(killed)
    service.take_away()
    before = service.lease()
    with pytest.raises(
        StoreUnavailable, match=rf"{platform.node()}.* run this .* --without-journal"
    ) as error:
        service.forget()
    assert before.name in str(error.value) or service.server
    assert service.lease() == before
    assert len(traces(service)) > 3

    class Killed(BaseException):
        pass

    def kill(share):
        raise Killed

    with pytest.raises(Killed):
        service.forget(without_journal=True, progress=kill)
    service.forget(without_journal=True)
    assert traces(service) == []
    assert (service.lease().released, service.lease().erasures) == (False, 2)
    service.bring_back()
    with pytest.raises(StoreUnavailable, match=r"viewers were erased .* fill it again"):
        service.forget()
    assert "viewers were erased" in refusal(service)
    service.fill()
    back = service.run(lambda service: service.events(event("back", viewer="ann", ts_ms=RETURN_MS)))
    assert back["accepted"] == 1
    events = service.rows("events")
    assert [row["id"] for row in events if row["viewer"]] == ["bob-join51000", "bob-join61000", "back"]
    assert [row["request_id"] for row in service.rows("exposures")][-1] == "bob-61000"
    assert traces(service) == [row for row in events if row["id"] == "back"]
    # Each number belongs to one record, and none is missing.
    every = [row["seq"] for table in ("viewers", "exposures", "events") for row in service.rows(table)]
    assert sorted({*every}) == sorted(every)
    assert max(every) == service.lease().end
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)
    assert (service.lease().erased, service.lease().erasures) == (None, 2)
    assert service.lease().models == str(service.folder / "models")


def test_another_store_takes_the_log_over_without_them(service, tmp_path):
    service.run(killed)
    service.take_away()
    service.forget(without_journal=True)
    service.bring_back()
    service.args = replace(service.args, store="lmdb:another")
    service.fill()
    service.run(lambda service: service.events(event("last", viewer="bob", ts_ms=RETURN_MS)))
    assert [row["id"] for row in service.rows("events") if row["viewer"]][1:] == ["bob-join61000", "last"]
    assert traces(service) == []


def test_a_journal_that_is_given_up_needs_no_hashes(service):
    service.run(killed)
    service.take_away()
    service.forget(without_journal=True)
    was, service.args = service.args, replace(service.args, store="lmdb:another")
    service.fill(without_journal=True)
    assert (service.lease().released, service.lease().erased) == (True, "")
    service.args = was
    service.bring_back()
    assert "viewers were erased" in refusal(service)


@with_both
def test_a_store_that_nobody_needs_may_be_gone_and_is_refused_when_it_is_back(service):
    service.run(served)
    service.take_away()
    if service.server:
        with pytest.raises(TabrankError, match="cannot be read"):
            service.forget()
    done = service.forget(without_journal=bool(service.server))
    assert (done["store"], service.lease().erasures, service.lease().erased) == (None, 1, "")
    assert traces(service) == []
    service.bring_back()
    assert "viewers were erased" in refusal(service)
    service.fill()
    # The store is fit, so the command forgets in it, however often.
    assert service.forget()["store"]
    assert service.forget()["store"]
    assert service.run(lambda service: service.events(event("e", viewer="bob")))["accepted"] == 1
    assert traces(service) == []


def test_a_store_in_the_place_of_another_one(service, monkeypatch):
    service.run(served)
    service.lose()
    service.fill()
    # Nobody needs the lost one, so the command forgets in the new one.
    assert service.forget()["store"]
    assert list(service.stored()[0].index) == ["bob"]
    service.lose()
    with monkeypatch.context() as earlier:
        earlier.setattr(Claim, "erasures", lambda claim: 0)
        service.fill()
    assert "viewers were erased" in refusal(service)
    service.fill()
    service.run(killed)
    service.lose()
    open_store(service.args.store, "tiny", service.state, base=service.folder, writable=True).close()
    with pytest.raises(StoreUnavailable, match=r"is another one .* --without-journal"):
        service.forget()


def test_the_store_can_be_filled_after_an_erasure(service):
    service.run(served)
    service.forget()
    # In a bucket, the log must not seem to lack the numbers of the records that forgot the viewers.
    service.forget()
    service.args = replace(service.args, store="lmdb:another")
    service.fill()
    assert list(service.stored()[0].index) == ["bob"]


def test_the_log_keeps_no_hashes_of_more_than_fit(service, monkeypatch):
    monkeypatch.setattr("serve.log.erased_ids.MAX_BYTES", 16 + 3 * 8)
    service.run(killed)
    service.take_away()
    before = service.lease()
    with pytest.raises(TabrankError, match=r"5 viewers and requests are too many"):
        service.forget(without_journal=True)
    assert service.lease() == before
