"""Tests of the live loop on Ray: two replicas, Ingest killed under load, a log that replays."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from serve.client import Client, ClientError, Unreachable
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.operate.host.environment import HAPROXY, ONE_MACHINE
from serve.stores.factory import open_store
from tests.support.logging_service import assert_same_state, stored_rows

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[1]
ROUNDS = 3
EVENTS_PER_S, BATCH = 500, 25


def run(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    run("training", "simulate", "--out", "log", "--rows", "20000", "--days", "0.2", "--end", "now", cwd=home)
    run("serve", "load", "--log", "log", "--store", "lmdb:store", cwd=home)
    return home


@pytest.fixture(scope="module")
def url(home):
    """Serve with two `FeatureFetch` replicas and the popular arm, which needs no model."""
    document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    document["http_options"] |= {"port": port, "request_timeout_s": 30}
    application = document["applications"][0]
    application["args"] |= {"store": "lmdb:store", "models": "models", "log": "log"}
    front = application["deployments"][0]
    front["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
    # The test machine may be busy.
    front["user_config"]["deadline_ms"] = 10_000
    front["graceful_shutdown_timeout_s"] = 15
    front["user_config"]["experiment"]["arms"] = {"popular": {"scorer": "popular", "share": 1.0}}
    (home / "cluster.yaml").write_text(yaml.safe_dump(document))
    run("serve", "up", "--timeout", "180", cwd=home)
    yield f"http://127.0.0.1:{port}"
    run("serve", "down", cwd=home)


def processes(home):
    """Return the service's processes with their command lines."""
    service = psutil.Process(json.loads((home / "var/run/service.json").read_text())["pid"])
    found = []
    for process in service.children(recursive=True):
        # The process has just ended.
        with contextlib.suppress(psutil.Error):
            found.append((process, process.cmdline()))
    return found


def replicas(home, name):
    lines = ((process, " ".join(words)) for process, words in processes(home))
    return [process for process, line in lines if "ServeReplica" in line and name in line]


def haproxies(home):
    return [process for process, words in processes(home) if Path((words or [""])[0]).name == "haproxy"]


class Poster(threading.Thread):
    """Post batches of events at a constant rate; repeat each until it is acknowledged."""

    def __init__(self, url):
        super().__init__()
        self.acknowledged = []
        self.num_retries = 0
        self.stop = threading.Event()
        self._url = url

    def run(self):
        number, begun = 0, time.monotonic()
        with httpx.Client(base_url=self._url, timeout=5) as client:
            while not self.stop.is_set():
                time.sleep(max(begun + number * BATCH / EVENTS_PER_S - time.monotonic(), 0.0))
                ids = [f"kill{number}-{i}" for i in range(BATCH)]
                records = [
                    {
                        "type": "event",
                        "id": id_,
                        # Of one viewer, repeats of an action are rejected.
                        "viewer": f"k{id_}",
                        "candidate": "s0000001",
                        "kind": "join",
                    }
                    for id_ in ids
                ]
                while not self._accepted(client, records):
                    self.num_retries += 1
                    time.sleep(0.1)
                self.acknowledged += ids
                number += 1

    def _accepted(self, client, records):
        try:
            answer = client.post("/v1/events", json={"records": records})
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and not answer.json()["rejected"]


def ports(replica):
    """Return the ports on which a replica itself accepts HTTP, behind HAProxy."""
    listening = (c.laddr.port for c in replica.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
    return [port for port in listening if 30_000 <= port < 31_000]


def test_both_replicas_see_an_event_within_the_same_second(home, url):
    addresses = [
        f"http://127.0.0.1:{port}" for replica in replicas(home, "FeatureFetch") for port in ports(replica)
    ]
    assert len(addresses) == 2
    body = {"viewer": None, "candidates": ["brand-new"], "traffic": "test"}
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=address, timeout=30)) for address in addresses]
        for client in clients:
            assert client.post("/v1/rank", json=body).json()["unknown_candidates"] == ["brand-new"]
        record = {"type": "candidate", "id": "brand-new", "fields": {"topic": "news"}}
        answer = httpx.post(f"{url}/v1/events", json={"records": [record]}, timeout=30)
        begun, unseeing = time.monotonic(), clients
        while unseeing and time.monotonic() < begun + 1.0:
            unseeing = [c for c in unseeing if c.post("/v1/rank", json=body).json()["unknown_candidates"]]
    assert answer.json() == {"accepted": 1, "duplicates": 0, "rejected": []}
    assert unseeing == []


class Asking(threading.Thread):
    """Rank with the shipped client, 50 times a second, until stopped."""

    def __init__(self, client):
        super().__init__()
        self.rungs, self.errors = Counter(), []
        self.stop = threading.Event()
        self._client = client

    def run(self):
        while not self.stop.wait(0.02):
            try:
                self.rungs[self._client.rank("k1", ["s0000001", "s0000002"], traffic="test").rung] += 1
            except ClientError as error:
                self.errors.append((time.monotonic(), error))


@contextlib.contextmanager
def asking(url):
    """Run three such clients until the block ends."""
    with Client(url, timeout_s=3.0) as client:
        threads = [Asking(client) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            yield threads
        finally:
            for thread in threads:
                thread.stop.set()
            for thread in threads:
                thread.join(10)


def until(reached, within_s):
    end = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < end, reached
        time.sleep(0.1)


def test_a_killed_replica_costs_no_request_and_a_killed_haproxy_an_outage(home, url):
    def answering(threads):
        before = [sum(thread.rungs.values()) for thread in threads]
        return lambda: all(
            sum(thread.rungs.values()) >= n + 20 for thread, n in zip(threads, before, strict=True)
        )

    # A reloaded one may still be running.
    until(lambda: len(haproxies(home)) == 1, 30)
    (haproxy,) = haproxies(home)
    config = Path(haproxy.cmdline()[haproxy.cmdline().index("-f") + 1]).read_text()
    for ours in (
        f"retry-on {ONE_MACHINE['RAY_SERVE_HAPROXY_RETRY_ON']}\n",
        f"fastinter {HAPROXY['RAY_SERVE_HAPROXY_HEALTH_CHECK_FASTINTER']} ",
    ):
        assert ours in config, "the setting of environment.py"

    with asking(url) as threads:
        until(answering(threads), 10)
        victim = replicas(home, "FeatureFetch")[0]
        victim.kill()
        until(lambda: len(set(replicas(home, "FeatureFetch")) - {victim}) == 2, 30)
        until(answering(threads), 10)
    assert [thread.errors for thread in threads] == [[]] * 3

    with asking(url) as threads:
        until(answering(threads), 10)
        # The process may be a new one: each change of the replicas starts another.
        for one in haproxies(home):
            with contextlib.suppress(psutil.Error):
                one.kill()
        until(lambda: all(thread.errors for thread in threads), 10)
        until(lambda: len(haproxies(home)) == 1, 30)
        until(answering(threads), 10)
    errors = sorted((at_s, error) for thread in threads for at_s, error in thread.errors)
    assert {type(error) for _, error in errors} == {Unreachable}
    assert errors[-1][0] - errors[0][0] < 10, "it takes 3 s; the test machine may be busy"
    assert set.union(*(set(thread.rungs) for thread in threads)) == {"full"}


def num_logged(home):
    """Return the number of exposures that Ingest accepted, from its metrics."""
    page = httpx.get(json.loads((home / "var/run/service.json").read_text())["metrics_url"], timeout=5).text
    found = re.findall(r'^ray_tabrank_records_total\{.*kind="exposure".*\} (\S+)$', page, re.MULTILINE)
    return sum(map(float, found))


def test_exposures_that_waited_for_ingest_are_logged_and_leave_no_memory(home, url):
    """Send longest ids and many rankings, more than a Ray call may hold, while Ingest
    is suspended.
    """
    fronts = replicas(home, "FeatureFetch")
    addresses = [f"http://127.0.0.1:{port}" for front in fronts for port in ports(front)]
    (ingest,) = replicas(home, "Ingest")
    wide = [f"{i:04d}".ljust(256, "\N{ROCKET}") for i in range(1_000)]
    long = [f"{i:036d}" for i in range(100)]
    before, sizes = num_logged(home), [front.memory_info().rss for front in fronts]
    num = 0

    def are_fresh():
        answers = [httpx.get(f"{address}/readyz", timeout=30).json() for address in addresses]
        return all(answer["freshness_ms"] < 1_000 for answer in answers)

    with httpx.Client(base_url=url, timeout=30) as client:
        ingest.suspend()
        try:
            for ids in [wide] * 16 + [long] * 100:
                body = {"viewer": None, "candidates": ids, "limit": len(ids), "traffic": "test"}
                assert client.post("/v1/rank", json=body).status_code == 200
                num += 1
        finally:
            ingest.resume()
        until(are_fresh, 15)
        answer = client.post("/v1/rank", json={"viewer": None, "candidates": long[:2], "traffic": "test"})
    assert (answer.json()["rung"], answer.json()["degraded"]) == ("full", [])
    until(lambda: num_logged(home) >= before + num, 15)
    grown = [front.memory_info().rss - size for front, size in zip(fronts, sizes, strict=True)]
    assert max(grown) < 150e6, "the exposures take 20 MB, and no retry may leave as much behind"


@pytest.mark.proof
def test_acknowledged_events_are_stored_once_even_if_ingest_is_killed(home, url):
    poster = Poster(url)
    poster.start()
    try:
        for _ in range(ROUNDS):
            time.sleep(1.0)
            num_acknowledged = len(poster.acknowledged)
            victims = replicas(home, "Ingest")
            assert victims
            for victim in victims:
                victim.kill()
            end = time.monotonic() + 60
            while len(poster.acknowledged) <= num_acknowledged + 2 * BATCH and time.monotonic() < end:
                answer = httpx.post(
                    f"{url}/v1/rank",
                    json={"viewer": "k1", "candidates": ["s0000001", "s0000002"]},
                    timeout=30,
                )
                assert answer.status_code == 200
                time.sleep(0.1)
            assert len(poster.acknowledged) > num_acknowledged + 2 * BATCH
    finally:
        poster.stop.set()
        poster.join(60)
    # Now kill everything, with a batch in flight. Acknowledged events are in the store's journal or
    # in the log.
    service = psutil.Process(json.loads((home / "var/run/service.json").read_text())["pid"])
    for process in [service, *service.children(recursive=True)]:
        process.kill()
    run("serve", "down", cwd=home)
    run("serve", "up", "--timeout", "180", cwd=home)
    taken = httpx.post(
        f"{url}/v1/events", json={"records": [_event(poster.acknowledged[-1]), _event("after")]}, timeout=30
    )
    assert taken.json() == {"accepted": 1, "duplicates": 1, "rejected": []}
    run("serve", "down", cwd=home)

    surface = load_surface("spaces")
    log = read_log(home / "log", surface, test_traffic=True)
    ids = [id_ for id_ in log.events["id"].to_pylist() if id_.startswith("kill")]
    assert len(set(ids)) == len(ids)
    assert set(poster.acknowledged) <= set(ids)
    assert log.counts["repeated_events"] == 0
    replay = Replay(Schema(surface), log)
    replay.finish()
    store = open_store("lmdb:store", "spaces", replay.state.schema.fingerprint, base=home, writable=False)
    viewers, candidates = stored_rows(replay.state.schema, store)
    assert len(viewers)
    assert len(candidates)
    assert_same_state((viewers, candidates), replay, 1e-6)


def _event(id_):
    return {"type": "event", "id": id_, "viewer": "k1", "candidate": "s0000001", "kind": "join"}
