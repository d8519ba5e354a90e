"""Faults of a cluster of two nodes that share a bucket and Redis, and no folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import yaml

from serve.features.surface import load_surface
from serve.log.reader import read_log
from serve.storage.bucket import place
from tests.support.redis_server import MISSING, RedisServer, find_server
from tests.support.s3_server import S3Server, environment, named
from tests.support.two_nodes import TwoNodes

pytestmark = [pytest.mark.integration, pytest.mark.proof]
ROOT = Path(__file__).parents[1]
PER_S = 20


def run(*arguments):
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]


class Callers:
    """Rankings and events that go to both ingresses in turn, and are tried twice."""

    def __init__(self, urls, bodies):
        self._urls, self._bodies, self._ended = list(urls), bodies, threading.Event()
        self.outcomes, self.acknowledged = Counter(), set()
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in (self._rank, self._send)]

    def start(self):
        for thread in self._threads:
            thread.start()

    def _run(self, call):
        clients = [httpx.Client(base_url=url, timeout=5.0) for url in self._urls]
        begun, number = time.monotonic(), 0
        while not self._ended.is_set():
            time.sleep(max(0.0, begun + number / PER_S - time.monotonic()))
            number += 1
            call(clients[number % 2 :] + clients[: number % 2], number)
        for client in clients:
            client.close()

    def _rank(self, clients, number):
        answer = self._tried(clients, "/v1/rank", self._bodies[number % len(self._bodies)], "ranking")
        self.outcomes[f"rung {answer['rung']}" if answer else "no ranking"] += 1

    def _send(self, clients, number):
        body = self._bodies[number % len(self._bodies)]
        event = {"type": "event", "id": f"event-{number}", "kind": "click", "viewer": body["viewer"]}
        event["candidate"] = body["candidates"][number % 40]
        taken = self._tried(clients, "/v1/events", {"records": [event]}, "event")
        if taken and not taken["rejected"]:
            self.acknowledged.add(event["id"])
            self.outcomes["event taken"] += 1

    def _tried(self, clients, path, body, what):
        for attempt, client in enumerate(clients):
            try:
                answer = client.post(path, json=body)
                if answer.status_code in (200, 207):
                    return answer.json()
                why = str(answer.status_code)
            except httpx.HTTPError as error:
                why = type(error).__name__
            self.outcomes[f"{what}, try {attempt + 1}: {why}"] += 1
        self.outcomes[f"{what} failed"] += 1
        return None

    def since(self, before):
        return dict(self.outcomes - before)

    def end(self):
        self._ended.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    if find_server() is None:
        pytest.skip(MISSING)
    bucket, redis = S3Server(), RedisServer(tmp_path / "redis")
    bucket.wait()
    redis.start()
    variables = environment(f"http://127.0.0.1:{bucket.port}")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    log, models = named("log"), named("models")
    run("training", "simulate", "--out", log, "--rows", "20000", "--days", "0.2", "--end", "now")
    model = str(tmp_path / "model")
    run(
        "training",
        "fit",
        "--surface",
        "spaces",
        "--log",
        log,
        "--out",
        model,
        "--epochs",
        "1",
        "--workers",
        "0",
    )
    run("training", "publish", "--model", model, "--models", models)
    run("serve", "load", "--log", log, "--store", redis.url)
    document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    document.pop("nodes")
    application = document["applications"][0]
    application["args"] |= {"store": redis.url, "models": models, "log": log}
    for deployment in application["deployments"][:2]:
        deployment["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
        deployment["max_replicas_per_node"] = 1
    # The test machine may be busy.
    front = application["deployments"][0]
    front["user_config"]["deadline_ms"] = 2_000
    front["graceful_shutdown_timeout_s"] = 15
    nodes = TwoNodes(tmp_path / "nodes", document, variables)
    try:
        nodes.start()
        yield nodes, redis, bucket, place(log)
    finally:
        nodes.stop()
        redis.kill()
        bucket.stop()


def test_a_cluster_without_a_shared_folder_outlives_its_faults(cluster, tmp_path):
    nodes, redis, bucket, log = cluster
    rows = pq.read_table(log / "exposures.parquet").slice(0, 50).to_pylist()
    bodies = [{"viewer": row["viewer"], "candidates": row["candidates"]} for row in rows]
    callers, found = Callers(nodes.urls.values(), bodies), {}
    callers.start()

    def whole():
        counts = [len(nodes.replicas(name)) for name in ("FeatureFetch", "Scorer", "Ingest")]
        ready = [httpx.get(f"{url}/readyz", timeout=5).json() for url in nodes.urls.values()]
        return counts == [2, 2, 1] and all(one["store"] == "fresh" for one in ready)

    def fault(name, inject, heal=lambda: None, hold_s=0.0):
        nodes.until(whole)
        time.sleep(5)
        before = Counter(callers.outcomes)
        inject()
        time.sleep(hold_s)
        heal()
        time.sleep(2)
        whole_s = nodes.until(whole) + 2
        found[name] = {"whole_s": round(whole_s, 1)} | callers.since(before)
        print(name, json.dumps(found[name]), flush=True)

    fault("one of two FeatureFetch killed", lambda: nodes.replicas("FeatureFetch")[0].kill())
    fault("one of two Scorers killed", lambda: nodes.replicas("Scorer")[0].kill())
    fault("Ingest killed", lambda: nodes.replicas("Ingest")[0].kill())
    fault("controller killed", lambda: nodes.find("ray::ServeController")[0].kill())
    fault("Redis killed for 6 s", redis.kill, redis.start, 6)
    stop, go_on = (partial(bucket._process.send_signal, one) for one in (signal.SIGSTOP, signal.SIGCONT))
    fault("bucket silent for 40 s", stop, go_on, 40)
    fault("the worker killed for 20 s", nodes.kill_worker, nodes.start_worker, 20)
    callers.end()
    # The last minute's records are written when the journal is due.
    events = "event-"

    def logged():
        ids = read_log(log, load_surface("spaces"), test_traffic=True).events["id"].to_pylist()
        return Counter(one for one in ids if one.startswith(events))

    nodes.until(lambda: callers.acknowledged <= set(logged()), 150)
    assert set(logged().values()) == {1}
    lost = (
        found["one of two FeatureFetch killed"],
        found["one of two Scorers killed"],
        found["controller killed"],
    )
    assert [one.get("no ranking", 0) for one in lost] == [0, 0, 0]
    assert found["bucket silent for 40 s"].get("no ranking", 0) == 0
    # Nothing but cluster.yaml, caches and logs is in the nodes' folders.
    written = {path.name for node in ("head", "worker") for path in (tmp_path / "nodes" / node).iterdir()}
    assert written <= {"cluster.yaml", "cache"}
