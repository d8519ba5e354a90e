"""Redis store: a server that stops, hangs, fills up or is flushed; messages hide the password."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from serve.__main__ import app
from serve.contract.errors import StoreUnavailable, TabrankError, WriterFenced
from serve.features.rows import Schema
from serve.features.surface import Surface
from serve.stores.factory import open_store
from serve.stores.protocol import Changes
from serve.stores.redis import CHUNK, MAX_REMOVED, RedisStore
from serve.stores.redis_client import PASSWORD, connect
from serve.stores.redis_scripts import REPLACE
from tests.support.redis_server import MISSING, RedisServer, find_server
from tests.support.small_surface import TOML
from tests.support.store_access import read_changes, read_viewers, write

NAME = "spaces-0123456789ab"


def needs_server(test):
    return pytest.mark.integration(pytest.mark.no_ray(test))


@pytest.fixture
def server(empty_redis_server: RedisServer) -> RedisServer:
    return empty_redis_server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    """Return a writer with a fencing epoch and one commit."""
    store = RedisStore(server.url, NAME, writable=True)
    store.take_epoch()
    store.commit(1, {"ann": b"1"}, {"x": b"1"}, journal=b"one")
    yield store
    store.close()


@pytest.fixture
def empty_store(server: RedisServer) -> Iterator[RedisStore]:
    """Return a writer with a fencing epoch and no commit."""
    store = RedisStore(server.url, NAME, writable=True)
    store.take_epoch()
    yield store
    store.close()


@pytest.mark.parametrize(
    ("url", "used"), [("redis://h:1/0", "kept apart"), ("redis://:given@h:1/0", "given")]
)
def test_a_password_in_the_address_overrides_the_environment(url, used, monkeypatch):
    monkeypatch.setenv(PASSWORD, "kept apart")
    assert connect(url).connection_pool.connection_kwargs["password"] == used


def holds_the_first_commit(store: RedisStore) -> bool:
    rows, changes = store.read(["ann", "bob"], 0)
    return (rows, changes.seq, changes.rows, store.journal(0, 9)) == (
        [b"1", None],
        1,
        {"x": b"1"},
        [(1, b"one")],
    )


@needs_server
def test_a_user_who_may_not_name_the_client_still_writes(server, client):
    client.execute_command("ACL", "SETUSER", "ann", "on", ">pw", "~*", "+@all", "-client")
    url = server.url.replace("//", "//ann:pw@")
    store = RedisStore(url, NAME, writable=True)
    try:
        store.take_epoch()
        store.commit(1, {"ann": b"1"}, {})
        assert read_viewers(store, ["ann"]) == [b"1"]
        # Such a user cannot see who writes.
        with pytest.raises(StoreUnavailable, match="client"):
            store.refuse_writer("stop it first")
    finally:
        store.close()
        client.execute_command("ACL", "DELUSER", "ann")


@needs_server
def test_a_server_that_is_gone_is_unavailable_until_it_is_back(
    server: RedisServer, store: RedisStore
) -> None:
    reader = RedisStore(server.url, NAME, writable=False)
    assert read_viewers(reader, ["ann"]) == [b"1"]
    server.kill()
    calls = (
        reader.seq,
        lambda: read_viewers(reader, ["ann"]),
        lambda: read_changes(reader, 1),
        lambda: reader.read(["ann"], 0),
        lambda: reader.journal(0, 1),
        lambda: reader.viewers(b"", 1),
        reader.num_bytes,
        reader.note,
        store.take_epoch,
        lambda: store.commit(2, {}, {}),
        lambda: store.replace(2, {}, {}),
        lambda: store.trim(1),
        lambda: RedisStore(server.url, NAME, writable=False),
    )
    for call in calls:
        with pytest.raises(StoreUnavailable, match=rf"redis://127\.0\.0\.1:{server.port}/0 cannot be used"):
            call()
    server.start()
    assert holds_the_first_commit(reader)
    assert read_viewers(reader, ["ann"]) == [b"1"]
    store.commit(2, {"ann": b"2"}, {})
    assert read_viewers(reader, ["ann"]) == [b"2"]
    reader.close()


@needs_server
def test_what_a_server_forbids_is_unavailable(
    client: redis.Redis, server: RedisServer, store: RedisStore
) -> None:
    client.acl_setuser("most", enabled=True, nopass=True, keys="*", commands=["+@all", "-scan", "-info"])
    limited = RedisStore(server.url.replace("//", "//most:any@"), NAME, writable=False)
    for call in (lambda: limited.viewers(b"", 1), limited.num_bytes):
        with pytest.raises(StoreUnavailable, match="no permissions"):
            call()
    assert read_viewers(limited, ["ann"]) == [b"1"]
    limited.close()


@needs_server
def test_a_server_that_hangs_is_unavailable_after_the_timeout(server: RedisServer, store: RedisStore) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"[Tt]ime"):
            store.commit(2, {"ann": b"2"}, {})
        assert time.monotonic() - begun < 10, "without a timeout it would be for ever"
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert store.seq() in (1, 2), "an answer that was lost says nothing of the commit; the number does"
    assert read_viewers(store, ["ann"]) == [str(store.seq()).encode()]


@needs_server
def test_a_killed_server_has_every_commit_that_it_acknowledged(
    server: RedisServer, store: RedisStore
) -> None:
    ids = [str(number) for number in range(100)]
    store.commit(3, {}, {}, journal=b"3")
    acknowledged = 3

    def commit_forever() -> None:
        nonlocal acknowledged
        try:
            while True:
                seq = acknowledged + 1
                rows = dict.fromkeys(ids, str(seq).encode() * 100)
                write(store, seq, rows, rows, replace=seq % 3 == 0, extra=str(seq).encode())
                acknowledged = seq
        except StoreUnavailable:
            pass

    for _ in range(3):
        before = acknowledged
        thread = threading.Thread(target=commit_forever)
        thread.start()
        end_s = time.monotonic() + 20
        while acknowledged == before:
            assert time.monotonic() < end_s
            time.sleep(0.01)
        # Kill it at some moment of a later commit.
        time.sleep(0.1)
        server.kill()
        thread.join()
        server.start()
        rows, changes = store.read(ids, 0)
        assert changes.seq in (acknowledged, acknowledged + 1)
        row = str(changes.seq).encode() * 100
        assert (set(rows), {changes.rows[id_] for id_ in ids}) == ({row}, {row})
        replaced = [seq for seq in range(4, changes.seq + 1) if seq % 3 == 0]
        kept = [seq for seq in range(3, changes.seq + 1) if seq not in replaced]
        assert store.journal(0, changes.seq) == [(1, b"one"), *((seq, str(seq).encode()) for seq in kept)]
        assert store.note() == b"".join(str(seq).encode() for seq in replaced[-1:])
        acknowledged = changes.seq


@needs_server
def test_another_process_reads_what_was_committed(server: RedisServer, store: RedisStore) -> None:
    code = (
        "import sys; from serve.stores.redis import RedisStore; "
        f"s = RedisStore(sys.argv[1], {NAME!r}, writable=False); "
        "viewers, changes = s.read(['ann'], 0); print(viewers, changes.rows, s.journal(0, 1)); s.close()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, server.url]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[b'1'] {'x': b'1'} [(1, b'one')]"


@needs_server
def test_threads_share_one_handle(store: RedisStore) -> None:
    failed: list[object] = []

    def read() -> None:
        for _ in range(100):
            rows, changes = store.read(["ann"], 0)
            if rows != [str(changes.seq).encode()] or None in read_viewers(store, ["ann"]):
                failed.append((rows, changes))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for seq in range(2, 60):
        row = str(seq).encode()
        write(store, seq, {"ann": row}, {"x": row}, replace=seq % 2 == 0)
    for thread in threads:
        thread.join()
    assert failed == []


@needs_server
def test_a_read_where_nothing_changed_is_one_command(store: RedisStore, client: redis.Redis) -> None:
    ids = ["ann", *(f"viewer {number}" for number in range(55))]
    store.read(ids, 0)
    client.config_resetstat()
    assert b"1" in store.read(ids, 1)[0]
    stats: dict[str, Any] = client.info("commandstats")
    sent = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
    assert sent == {"mget": 1, "config|resetstat": 1}


@needs_server
def test_replacing_a_store_larger_than_one_chunk_leaves_no_old_rows(
    server: RedisServer, store: RedisStore, client: redis.Redis
) -> None:
    reader = RedisStore(server.url, NAME, writable=False)
    assert read_viewers(reader, ["ann"]) == [b"1"]
    other = RedisStore(server.url, "spaces-eu-0123456789ab", writable=True)
    other.take_epoch()
    other.commit(1, {"ann": b"eu"}, {})
    for seq in (2, 3):
        viewers = {f"viewer {number}": b"%d" % seq for number in range(2 * CHUNK + 1)}
        candidates = {f"room {number}": b"%d" % seq for number in range(2 * CHUNK + 2)}
        store.replace(seq, viewers, candidates)
        assert read_viewers(reader, ["ann", *viewers]) == [None, *viewers.values()]
        assert read_changes(reader, 1) == Changes(0, {})
        assert read_changes(reader, 0) == Changes(seq, candidates)
        keys = client.keys(f"tabrank:{{{NAME}}}:*")
        assert len(keys) == len(viewers) + 6, "meta, now, beat, journal, rows and order"
    assert read_viewers(other, ["ann"]) == [b"eu"]
    other.close()
    reader.close()


@needs_server
def test_a_reader_that_missed_forgotten_removals_has_to_start_again(empty_store: RedisStore) -> None:
    store = empty_store
    ids = [f"room {number}" for number in range(MAX_REMOVED + 1)]
    store.commit(1, {}, dict.fromkeys([*ids, "stays"], b"1"))
    store.commit(2, {}, dict.fromkeys(ids[:100], b""))
    store.commit(3, {}, dict.fromkeys(ids[100:], b""))
    assert len(read_changes(store, 2).rows) == MAX_REMOVED + 1 - 100, "none of the newest commit is forgotten"
    assert read_changes(store, 1) == Changes(0, {})
    assert read_changes(store, 0).rows == {"stays": b"1", **dict.fromkeys(ids[100:], b"")}
    store.commit(4, {}, {"again": b"4"})
    store.commit(5, {}, {"again": b"", ids[100]: b"", ids[0]: b"5"})
    assert read_changes(store, 3) == Changes(5, {"again": b"", ids[0]: b"5"})
    store.commit(6, {}, dict.fromkeys([*ids, "stays"], b"6"))
    store.commit(7, {}, dict.fromkeys(ids, b""))
    assert len(read_changes(store, 6).rows) == MAX_REMOVED + 1
    store.commit(8, {}, {"stays": b"8"})
    assert read_changes(store, 6) == Changes(0, {})
    assert read_changes(store, 7) == Changes(8, {"stays": b"8"})
    assert len(read_changes(store, 0).rows) == MAX_REMOVED // 2 + 1
    store.commit(9, {}, {ids[0]: b"9", ids[-1]: b"9"})
    assert read_changes(store, 8) == Changes(9, {ids[0]: b"9", ids[-1]: b"9"})


@needs_server
def test_a_candidate_that_came_back_is_not_forgotten_with_the_removed(empty_store: RedisStore) -> None:
    store = empty_store
    ids = [f"room {number}" for number in range(MAX_REMOVED)]
    store.commit(1, {}, dict.fromkeys([*ids, "back", "gone"], b"1"))
    store.commit(2, {}, {"back": b"", "gone": b""})
    store.commit(3, {}, {"back": b"3"})
    store.commit(4, {}, dict.fromkeys(ids, b""))
    assert read_changes(store, 0).rows == {"back": b"3", **dict.fromkeys(ids, b"")}
    seqs = [read_changes(store, since).seq for since in (1, 2)]
    assert seqs == [0, 4], "room was made by forgetting what was gone"


@needs_server
def test_replacing_forgets_all_removals_and_later_ones_are_remembered(empty_store: RedisStore) -> None:
    store = empty_store
    ids = [f"room {number}" for number in range(MAX_REMOVED)]
    store.commit(1, {}, dict.fromkeys([*ids, "stays"], b"1"))
    store.commit(2, {}, dict.fromkeys(ids[:100], b""))
    store.replace(3, {}, dict.fromkeys([*ids, "stays"], b"3"))
    assert read_changes(store, 2) == Changes(0, {})
    assert read_changes(store, 0) == Changes(3, dict.fromkeys([*ids, "stays"], b"3"))
    store.commit(4, {}, dict.fromkeys(ids, b""))
    assert read_changes(store, 3) == Changes(4, dict.fromkeys(ids, b"")), "room for all of them"
    store.commit(5, {}, {"stays": b""})
    assert read_changes(store, 3) == Changes(0, {})
    assert len(read_changes(store, 0).rows) == MAX_REMOVED // 2


@needs_server
def test_an_interrupted_replacement_keeps_the_content_and_is_cleaned_up(
    store: RedisStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(server: redis.Redis, script: object, *arguments: object) -> object:
        if script is REPLACE:
            raise redis.ConnectionError("cut off")
        return run(server, script, *arguments)

    run: Any = store._run
    monkeypatch.setattr(store, "_run", broken)
    with pytest.raises(StoreUnavailable, match="cut off"):
        store.replace(2, {"bob": b"2"}, {"y": b"2"}, b"two")
    assert holds_the_first_commit(store)
    assert len(client.keys("*:v:*")) == 2
    monkeypatch.undo()
    store.replace(2, {"bob": b"3"}, {"y": b"3"})
    assert store.read(["ann", "bob"], 1) == ([None, b"3"], Changes(0, {}))
    assert len(client.keys("*:v:*")) == 1


@needs_server
def test_an_epoch_taken_during_a_replacing_commit_fences_it(
    server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = RedisStore(server.url, NAME, writable=True)
    run: Any = store._run

    def taken_meanwhile(*arguments: Any) -> Any:
        if arguments[1] is REPLACE:
            second.take_epoch()
        return run(*arguments)

    monkeypatch.setattr(store, "_run", taken_meanwhile)
    with pytest.raises(WriterFenced):
        store.replace(2, {"bob": b"2"}, {"y": b"2"}, b"two")
    assert holds_the_first_commit(store)
    second.close()


@needs_server
def test_a_server_without_memory_refuses_a_commit_whole(store: RedisStore, client: redis.Redis) -> None:
    client.config_set("maxmemory", "1")
    try:
        for replace in (False, True):
            with pytest.raises(StoreUnavailable, match="memory"):
                write(store, 2, {"ann": b"2", "bob": b"2"}, {"x": b"2"}, replace=replace, extra=b"two")
            assert holds_the_first_commit(store)
    finally:
        client.config_set("maxmemory", "0")
    store.commit(2, {"ann": b"2"}, {})
    assert read_viewers(store, ["ann"]) == [b"2"]


@needs_server
def test_an_emptied_server_has_no_store_and_its_writer_begins_none(
    server: RedisServer, store: RedisStore, client: redis.Redis
) -> None:
    reader = RedisStore(server.url, NAME, writable=False)
    client.flushall()
    calls = (
        reader.seq,
        lambda: read_viewers(reader, []),
        lambda: read_viewers(reader, ["ann"]),
        lambda: read_changes(reader, 1),
        lambda: reader.journal(0, 1),
        store.take_epoch,
        lambda: store.commit(8, {"ann": b"8"}, {}),
        lambda: store.replace(8, {"ann": b"8"}, {}),
        lambda: store.trim(8),
    )
    for call in calls:
        with pytest.raises(StoreUnavailable, match=r"there is no store.*python -m serve load --log LOG"):
            call()
    assert client.dbsize() == 0
    reader.close()


@needs_server
@pytest.mark.parametrize("new_seq", [1, 3, 9])
def test_a_reader_of_a_store_that_was_begun_again_is_told_to_start_again(
    server: RedisServer, store: RedisStore, client: redis.Redis, new_seq: int
) -> None:
    reader = RedisStore(server.url, NAME, writable=False)
    store.commit(3, {}, {"x": b"3"})
    assert read_changes(reader, 0) == Changes(3, {"x": b"3"})
    client.flushall()
    new = RedisStore(server.url, NAME, writable=True)
    for _ in range(2):
        with pytest.raises(WriterFenced):
            store.commit(10, {"ann": b"9"}, {})
        # The first epoch taken here equals the lost one.
        new.take_epoch()
    new.commit(new_seq, {}, {"y": b"1"})
    assert read_changes(reader, 3) == Changes(0, {})
    assert reader.read(["ann"], 3) == ([None], Changes(0, {})), "until it does"
    assert read_changes(reader, 0) == Changes(new_seq, {"y": b"1"})
    assert read_changes(reader, new_seq) == Changes(new_seq, {})
    new.close()
    reader.close()


@needs_server
def test_a_store_of_another_format_is_refused(
    server: RedisServer, store: RedisStore, client: redis.Redis
) -> None:
    client.hset(f"tabrank:{{{NAME}}}:meta", "format", "0")
    for writable in (False, True):
        with pytest.raises(StoreUnavailable, match="has format b'0', not b'2'; delete its keys"):
            RedisStore(server.url, NAME, writable=writable)


@needs_server
def test_a_writer_is_warned_of_a_server_that_forgets(
    server: RedisServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    RedisStore(server.url, NAME, writable=True).close()
    assert caplog.messages == []
    client.config_set("appendonly", "no")
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        RedisStore(server.url, NAME, writable=False).close()
        assert caplog.messages == []
        RedisStore(server.url, NAME, writable=True).close()
    finally:
        client.config_set("appendonly", "yes")
        client.config_set("maxmemory-policy", "noeviction")
    appendonly, eviction = caplog.messages
    assert "set `appendonly yes`" in appendonly
    assert "allkeys-lru" in eviction


@needs_server
def test_no_message_holds_the_password(tmp_path: Path) -> None:
    if find_server() is None:
        pytest.skip(MISSING)
    server = RedisServer(tmp_path, "--requirepass", "s3cret-right")
    server.start()
    try:
        right = server.url.replace("//", "//:s3cret-right@")
        for user in ("", "ann"):
            wrong = server.url.replace("//", f"//{user}:s3cret-wrong@")
            assert "s3cret" not in refusal(wrong, f"redis://127.0.0.1:{server.port}/0 cannot be used")
        store = RedisStore(right, NAME, writable=True)
        with pytest.raises(StoreUnavailable) as absent:
            RedisStore(right, "spaces-ffffffffffff", writable=False)
        assert "s3cret" not in str(absent.value)
    finally:
        server.stop()
    assert "s3cret" not in refusal(right, f"redis://127.0.0.1:{server.port}/0 cannot be used")
    store.close()
    with pytest.raises(StoreUnavailable, match="closed") as closed:
        store.seq()
    assert "s3cret" not in str(closed.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://ann:s3cret@host:port/0",
        "redis://ann:s3cret/with-slash@host/0",
        "redis://ann:s3cret@[host/0",
        "redis://ann:s3cret@host/0?no_such_option=1",
        "reddis://ann:s3cret@host/0",
        "redis:ann:s3cret@host/0",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    assert "s3cret" not in refusal(url, r"use (lmdb:PATH or )?redis://")


def refusal(url: str, says: str) -> str:
    """Return the message of opening this address, with the traceback that a log would hold."""
    with pytest.raises(TabrankError, match=says) as refused:
        open_store(url, "spaces", "0123456789ab", base=Path(), writable=True)
    lines = traceback.format_exception(refused.value)
    return "".join(line for line in lines if "open_store(" not in line)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "serve.stores.redis")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(TabrankError, match=r"needs the package redis.*pip install 'tabrank\[redis\]'"):
        open_store("redis://host/0", "spaces", "0123456789ab", base=Path(), writable=False)


@needs_server
def test_load_fills_it(server: RedisServer, log_folder: Path, surface: Surface, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TOML)
    address = server.url.replace("//", "//default:s3cret@")
    with redis.Redis.from_url(server.url) as client:
        client.acl_setuser("default", enabled=True, passwords=["+s3cret"])
        try:
            tiny, log = str(tmp_path / "tiny.toml"), str(log_folder)
            ran = CliRunner().invoke(app, ["load", "--surface", tiny, "--log", log, "--store", address])
        finally:
            client.acl_setuser("default", enabled=True, nopass=True)
    assert ran.exit_code == 0, ran.output
    assert "s3cret" not in ran.output
    store = open_store(server.url, surface.name, Schema(surface).fingerprint, base=tmp_path, writable=False)
    num_live = len(read_changes(store, 0).rows)
    store.close()
    assert f"{server.url}: " in ran.output
    assert f" viewers, {num_live} candidates" in ran.output
    assert num_live > 0
