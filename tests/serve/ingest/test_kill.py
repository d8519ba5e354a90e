"""Ingest killed repeatedly under load keeps every acknowledged record exactly once."""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import sys
import threading

import pyarrow.parquet as pq
import pytest

from serve.contract.records import Event
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.ingest.backfill import load
from serve.log.events import Exposure, pack
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.log.snapshots import numbers
from serve.stores.factory import open_store
from tests.support.logging_service import assert_same_state, stored_rows
from tests.support.small_surface import TOML

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]
# Events of a payload, at ten payloads a second.
BATCH = 50


class Client:
    """Client that sends payloads in order and resends each until it is acknowledged."""

    def __init__(self, folder, store):
        self.command = [sys.executable, "tests/support/ingest_process.py", str(folder), store]
        self.acknowledged = []
        self.num_duplicates = 0
        self._process = None
        self._draw = random.Random(0)

    def start(self):
        self._process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def kill(self):
        self._process.kill()

    def forget(self):
        """Release a killed process."""
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()

    def finish(self):
        self._process.stdin.close()
        assert self._process.wait(60) == 0
        self._process.stdout.close()

    def send(self, number):
        """Send events and an exposure, until acknowledged or the process ended."""
        ids = [f"e{number}-{i}" for i in range(BATCH)]
        now_ms = 60_000 + number
        records = [
            # Of one viewer and candidate, only 20 count in ten minutes.
            Event(id_, f"v{self._draw.randrange(1_000)}", self._draw.choice("abcd"), "join", now_ms)
            for id_ in ids
        ]
        records.append(Exposure(f"x{number}", now_ms, "ann", ["a", "b"], b"\0" * 8, "e", "m", "full", 0))
        payload = pack(records)
        self._process.stdin.write(struct.pack("<I", len(payload)) + payload)
        self._process.stdin.flush()
        answer = self._process.stdout.read(4)
        if len(answer) < 4:
            raise BrokenPipeError
        self.num_duplicates += struct.unpack("<I", answer)[0]
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
        except (BrokenPipeError, OSError):
            timer.join()
        client.forget()
        client.start()
        # Resend: the records may have been stored.
        client.send(number)
    client.finish()

    assert numbers(log_folder), "some kills came while a snapshot was written"
    log = read_log(log_folder, surface)
    ids = [id_ for id_ in log.events["id"].to_pylist() if "-" in id_]
    assert sorted(ids) == sorted(client.acknowledged)
    # A record may be in two segments.
    for name, column in (("events", "id"), ("exposures", "request_id")):
        served = pq.read_table(log_folder / name)
        assert len(set(zip(served["seq"].to_pylist(), served[column].to_pylist(), strict=True))) == len(
            getattr(log, name)["seq"].drop_null()
        )
    shown = [request for request in log.exposures["request_id"].to_pylist() if request.startswith("x")]
    assert shown == [f"x{i}" for i in range(number + 1)]
    replay = Replay(Schema(surface), log)
    replay.finish()
    opened = open_store(store, "tiny", replay.state.schema.fingerprint, base=tmp_path, writable=False)
    assert opened.journal(0, 1) == []
    assert_same_state(stored_rows(replay.state.schema, opened), replay, 1e-6)
