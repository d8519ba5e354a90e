"""Ingest killed repeatedly under load keeps every acknowledged record exactly once."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.config.settings import AppArgs
from serve.contract.records import Event
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.ingest.backfill import load
from serve.log.events import Exposure, pack
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.log.segments import segments
from serve.log.snapshots import numbers
from serve.storage.atomic_files import write_whole
from serve.storage.bucket import place
from serve.stores.factory import open_store
from tests.support import ingest_process
from tests.support.logging_service import assert_same_state, stored_rows
from tests.support.s3_server import named
from tests.support.small_surface import TOML

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]
# Events of a payload, at ten payloads a second.
BATCH = 50


# A process that has imported everything, of which each Ingest is a fork.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.support.ingest_process"])


class Client:
    """Client that sends payloads in order and resends each until it is acknowledged."""

    def __init__(self, folder, store, log="log"):
        self.folder, self.args = folder, AppArgs("tiny.toml", store, log=log)
        self.acknowledged = []
        self.num_duplicates = 0
        self._process = None
        self._draw = random.Random(0)

    def start(self):
        payloads, self._payloads = PROCESSES.Pipe(duplex=False)
        self._answers, answers = PROCESSES.Pipe(duplex=False)
        arguments = dict(os.environ), self.args, self.folder, payloads, answers
        self._process = PROCESSES.Process(target=ingest_process.run, args=arguments)
        self._process.start()
        payloads.close()
        answers.close()

    def kill(self):
        self._process.kill()

    def finish(self):
        self._payloads.close()
        self._process.join(60)
        assert self._process.exitcode == 0
        self._answers.close()

    def forget(self):
        """Release a killed process."""
        self._process.join()
        self._payloads.close()
        self._answers.close()

    def send(self, number):
        """Send events and an exposure, and wait until they are acknowledged.

        Raises:
            OSError, EOFError: the process has ended.
        """
        ids = [f"e{number}-{i}" for i in range(BATCH)]
        now_ms = 60_000 + number
        records = [
            # Of one viewer and candidate, only 20 count in ten minutes.
            Event(id_, f"v{self._draw.randrange(1_000)}", self._draw.choice("abcd"), "join", now_ms)
            for id_ in ids
        ]
        records.append(Exposure(f"x{number}", now_ms, "ann", ["a", "b"], b"\0" * 8, "e", "m", "full", 0))
        self._payloads.send_bytes(pack(records))
        self.num_duplicates += self._answers.recv()
        self.acknowledged += ids


@pytest.fixture(params=["lmdb", "redis"])
def store(request):
    if request.param == "lmdb":
        return "lmdb:store"
    return request.getfixturevalue("redis_server").url


@pytest.mark.parametrize("rounds", [5, pytest.param(20, marks=pytest.mark.proof)])
def test_what_was_acknowledged_survives_every_kill_once_and_whole(tmp_path, log_folder, store, rounds):
    (tmp_path / "tiny.toml").write_text(TOML)
    surface = load_surface(str(tmp_path / "tiny.toml"))
    load(surface, log_folder, store, tmp_path)
    client = Client(tmp_path, store)
    draw, number = random.Random(1), 0
    client.start()
    client.send(number)
    for _ in range(rounds):
        timer = threading.Timer(draw.uniform(0.3, 0.9), client.kill)
        timer.start()
        try:
            while True:
                number += 1
                client.send(number)
        except (OSError, EOFError):
            timer.join()
        client.forget()
        client.start()
        # Resend: the records may have been stored.
        client.send(number)
    client.finish()
    assert numbers(log_folder), "some kills came while a snapshot was written"
    assert_once_and_whole(client, surface, log_folder, store, tmp_path, number)


@pytest.mark.parametrize("how", ["closed", "cut upload", "lost reply"])
def test_what_was_acknowledged_survives_kills_in_uploads_to_a_bucket(tmp_path, log_folder, bucket, how):
    """Each process is killed by one of its uploads, which arrives not at all, in part, or whole."""
    (tmp_path / "tiny.toml").write_text(TOML)
    surface, name = load_surface(str(tmp_path / "tiny.toml")), named("log")
    log = place(name)
    for path in log_folder.iterdir():
        write_whole(log / path.name, path.read_bytes())
    load(surface, log, "lmdb:store", tmp_path)
    client = Client(tmp_path, "lmdb:store", name)
    draw, number, killed = random.Random(how), 0, Counter()
    client.start()
    client.send(number)
    for after in ("/events/", *4 * ["/"]):
        # The first process is killed by an upload of events.
        left = 1 if after == "/events/" else draw.randrange(1, 15)

        def kill(method, path, after=after):
            nonlocal left
            # The locks of a writer are written too.
            left -= method == "PUT" and after in path and not path.endswith(".lock")
            if left or method != "PUT":
                return None
            client.kill()
            killed[path.split("/")[3]] += 1
            return how

        bucket.fault = kill
        try:
            while True:
                number += 1
                client.send(number)
        except (OSError, EOFError):
            bucket.fault = lambda method, path: None
        client.forget()
        client.start()
        client.send(number)
    client.finish()
    assert killed["events"]
    assert_once_and_whole(client, surface, log, "lmdb:store", tmp_path, number)


def assert_once_and_whole(client, surface, folder, store, base, number):
    """Assert that the log has each acknowledged record once, and gives the state of the store."""
    log = read_log(folder, surface)
    ids = [id_ for id_ in log.events["id"].to_pylist() if "-" in id_]
    assert sorted(ids) == sorted(client.acknowledged)
    # A record may be in two segments.
    for name, column in (("events", "id"), ("exposures", "request_id")):
        served = pa.concat_tables(pq.read_table(segment.path) for segment in segments(folder, name))
        assert len(set(zip(served["seq"].to_pylist(), served[column].to_pylist(), strict=True))) == len(
            getattr(log, name)["seq"].drop_null()
        )
    shown = [request for request in log.exposures["request_id"].to_pylist() if request.startswith("x")]
    assert shown == [f"x{i}" for i in range(number + 1)]
    replay = Replay(Schema(surface), log)
    replay.finish()
    opened = open_store(store, "tiny", replay.state.schema.fingerprint, base=base, writable=False)
    assert opened.journal(0, 1) == []
    assert_same_state(stored_rows(replay.state.schema, opened), replay, 1e-6)
