"""Tests of the floods: the service accepts their requests, and they report memory and records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import psutil
import pytest

from loadtest.scenarios.chaos.floods import ExposureFlood, LongStrings
from serve.contract.rankings import MAX_BODY_BYTES
from serve.contract.records import MAX_EVENTS_BODY_BYTES
from serve.features.surface import load_surface
from serve.http.decoding import decode_request
from serve.log.events import decode_batch

SPACES = load_surface("spaces")


@pytest.fixture
def service():
    """Reject each third batch, lose the candidate of the first, and answer rankings."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = 200, {}
            if "records" in body:
                name = body["records"][-1]["id"]
                status = 429 if int(name.removeprefix("long-")) % 3 == 2 else 200
            else:
                answer = {"unknown_candidates": [name for name in body["candidates"] if name == "long-0"]}
            encoded = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def target(url="", *processes):
    found = [psutil.Process(pid) for pid in processes]
    return SimpleNamespace(url=url, find=lambda role: found, one=lambda role: found[0])


def test_the_largest_ranking_is_accepted_and_its_exposures_exceed_a_call():
    flood = ExposureFlood()
    body = flood.body(0)
    assert len(body) <= MAX_BODY_BYTES
    request = decode_request(body, SPACES, event_clock=False)
    assert {len(candidate) for candidate in request.candidates} == {256}
    assert flood.num * sum(len(candidate.encode()) for candidate in request.candidates) > 5 * (4 << 20)


def test_the_largest_records_are_accepted_and_fill_a_body():
    body = LongStrings().body(7)
    assert 0.9 * MAX_EVENTS_BODY_BYTES < len(body) <= MAX_EVENTS_BODY_BYTES
    records, refused = decode_batch(body, SPACES, event_clock=False)
    assert not refused
    assert max(len(member) for member in records[0].fields["follows"]) == 256
    assert records[len(records) - 1].id == "long-7"


def test_lost_acknowledged_batches_are_reported_and_rejected_ones_are_not(service):
    flood = LongStrings()
    flood.num = 9
    here = target(service, os.getpid())
    flood.inject(here)
    flood.look(here)
    numbers, reasons = flood.measured(None)
    assert (numbers["flood"], numbers["restarts"], numbers["lost"]) == (6, 0, 1)
    assert reasons == ["1 of 6 acknowledged batches are lost"]


def test_memory_that_stays_is_told_for_the_exposures(service):
    flood = ExposureFlood()
    flood.num, flood.rest_s = 1, 0.0
    here = target(service, os.getpid())
    flood.inject(here)
    flood.look(here)
    assert flood.measured(None)[1] == []
    held = bytearray(psutil.Process().memory_info().rss)
    held[::4096] = b"x" * len(held[::4096])
    flood.look(here)
    assert "FeatureFetch grew from" in flood.measured(None)[1][0]


def test_a_process_beyond_its_memory_is_ended_and_counts_as_a_restart(monkeypatch, service):
    monkeypatch.setattr("loadtest.scenarios.chaos.floods.MAX_BYTES", 1)
    flood = LongStrings()
    flood.num = 0
    flood.inject(target(service, os.getpid()))
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        flood.look(target(service, process.pid))
        assert process.wait(10) == -9
        process.stdin.close()
    numbers, reasons = flood.measured(None)
    assert numbers["restarts"] == 2
    assert reasons == ["Ingest restarted 2 times (limit 1)"]
