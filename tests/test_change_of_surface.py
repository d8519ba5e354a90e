"""A change of the surface and back, beside a service under load: nothing fails or is lost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from serve.client import Client, ClientError
from serve.features.rows import Schema
from serve.features.surface import SHIPPED, load_surface
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.stores.factory import open_store
from tests.support.logging_service import assert_same_state, stored_rows

pytestmark = [pytest.mark.integration, pytest.mark.proof]
ROOT = Path(__file__).parents[1]
ROUNDS = int(os.environ.get("TABRANK_CHANGES", "5"))
RANKINGS_PER_S, EVENTS_PER_S = 100, 50
IDS = [f"s{i:07d}" for i in range(20)]
# The age of features stays below this while a new version begins to answer.
OLDEST_MS = 15_000


def run(*arguments, cwd, codes=(0,)):
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode in codes, done.stderr[-3_000:]
    return done


@pytest.fixture
def home(tmp_path):
    shipped = (SHIPPED / "spaces.toml").read_text()
    (tmp_path / "spaces.toml").write_text(shipped)
    changed = shipped.replace('half_life = "10m"', 'half_life = "12m"')
    assert changed != shipped
    (tmp_path / "changed.toml").write_text(changed)
    document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        document["http_options"] |= {"port": listener.getsockname()[1], "request_timeout_s": 30}
    (application,) = document["applications"]
    application["args"] |= {"store": "lmdb:store", "models": "models", "log": "log"}
    front = application["deployments"][0]
    # The test machine may be busy.
    front["user_config"] |= {"deadline_ms": 10_000, "log_features": 0.2}
    front["user_config"]["experiment"]["arms"] = {"popular": {"scorer": "popular", "share": 1.0}}
    for name in ("spaces", "changed"):
        application["args"]["surface"] = f"{name}.toml"
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document))
    run(
        "training",
        "simulate",
        "--out",
        "log",
        "--rows",
        "50000",
        "--days",
        "0.2",
        "--end",
        "now",
        cwd=tmp_path,
    )
    run("serve", "load", "--surface", "spaces.toml", "--log", "log", "--store", "lmdb:store", cwd=tmp_path)
    run("serve", "up", "spaces.yaml", "--timeout", "180", cwd=tmp_path)
    yield tmp_path, document["http_options"]["port"]
    run("serve", "down", cwd=tmp_path)


class Load(threading.Thread):
    """Call the shipped client at a constant rate until stopped."""

    def __init__(self, port, per_s):
        super().__init__()
        self.acknowledged, self.errors, self.ages_ms = [], [], []
        self.stop = threading.Event()
        self._client = Client(f"http://127.0.0.1:{port}", timeout_s=5.0)
        self._per_s = per_s

    def run(self):
        number, begun = 0, time.monotonic()
        while not self.stop.is_set():
            time.sleep(max(begun + number / self._per_s - time.monotonic(), 0.0))
            number += 1
            try:
                self.call(number)
            except ClientError as error:
                self.errors.append(error)
        self._client.close()


class Rankings(Load):
    def call(self, number):
        self.ages_ms.append(self._client.rank(f"k{number % 97}", IDS, limit=10).freshness_ms)


class Events(Load):
    def call(self, number):
        id_ = f"change-{id(self)}-{number}"
        event = {"type": "event", "id": id_, "viewer": f"k{number % 97}", "candidate": IDS[number % 20]}
        answer = self._client.send([event | {"kind": ("join", "leave", "click")[number % 3]}])
        assert (answer.accepted, answer.rejected) == (1, [])
        self.acknowledged.append(id_)


def test_a_surface_is_changed_and_changed_back_under_load(home):
    folder, port = home
    # A client waits for its answer: several, so that none is late.
    threads = [Rankings(port, RANKINGS_PER_S / 4) for _ in range(4)]
    threads += [Events(port, EVENTS_PER_S / 10) for _ in range(10)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(ROUNDS):
            for name in ("changed", "spaces"):
                given = ("--surface", f"{name}.toml", "--log", "log", "--store", "lmdb:store")
                run("serve", "load", *given, cwd=folder)
                run("serve", "up", f"{name}.yaml", "--timeout", "180", cwd=folder)
                time.sleep(5.0)
    finally:
        for thread in threads:
            thread.stop.set()
        for thread in threads:
            thread.join(30)
    run("serve", "down", cwd=folder)
    errors = [error for thread in threads for error in thread.errors]
    acknowledged = {id_ for thread in threads for id_ in thread.acknowledged}
    oldest_ms = max(age for thread in threads for age in thread.ages_ms)
    print(f"{ROUNDS} rounds: {sum(len(t.ages_ms) for t in threads)} rankings, {len(acknowledged)} events, ")
    print(f"{len(errors)} errors, features up to {oldest_ms:.0f} ms old")

    surface = load_surface(str(folder / "spaces.toml"))
    log = read_log(folder / "log", surface, test_traffic=True)
    logged = [id_ for id_ in log.events["id"].to_pylist() if id_.startswith("change-")]
    assert acknowledged <= set(logged)
    assert len(set(logged)) == len(logged)
    replay = Replay(Schema(surface), log)
    replay.finish()
    store = open_store("lmdb:store", "spaces", replay.state.schema.fingerprint, base=folder, writable=False)
    assert_same_state(stored_rows(replay.state.schema, store), replay, 1e-6)
    for name in ("spaces", "changed"):
        done = run("training", "audit", "--surface", f"{name}.toml", "--log", "log", "--json", cwd=folder)
        found = json.loads(done.stdout)
        print(name, {key: found[key] for key in ("held", "exposures", "other_surface", "max")})
        assert found["held"]
    assert errors == []
    assert oldest_ms < OLDEST_MS
