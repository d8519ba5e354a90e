"""On a running service: edits of the surface's file, and processes killed after each of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import yaml

from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import SHIPPED, read_surface
from serve.ingest.backfill import load
from serve.log.reader import read_log
from serve.model.artifact import save
from serve.model.compatibility import load_for
from serve.operate.host.run_folder import RunFolder
from serve.rollout.registry import ModelRegistry
from tests.support.networks import artifact_files, random_network
from training.data.dataset import build
from training.data.encoding import category_strings, fit_encoder
from training.network.network import NetworkConfig
from training.world.simulate import simulate

pytestmark = [pytest.mark.integration, pytest.mark.proof]
ROOT = Path(__file__).parents[1]
TEXT = (SHIPPED / "spaces.toml").read_text()
# Enough that each of two replicas gets some of them: every one has a connection of its own.
ASKED = 12
# A killed process has another one in its place within this time, also on a busy machine.
RESTART_S = 60.0


class Service:
    """The service with two replicas, its files, and what its callers know."""

    def __init__(self, folder):
        self.folder, self.run_folder = folder, RunFolder(folder / "var/run")
        self.text = TEXT
        self.acknowledged = []
        simulate(folder / "log", rows=8_000, viewers=60, days=0.2)
        surface = self.surface
        self.table = read_log(folder / "log", surface)
        self.rooms = list(dict.fromkeys(self.table.candidates["id"].to_pylist()))[-8:]
        load(surface, folder / "log", "lmdb:store", folder)
        self.write(TEXT)
        self.publish("20260101T000000Z-0001")
        document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        document["http_options"] |= {"port": port, "request_timeout_s": 30}
        (application,) = document["applications"]
        application["args"] |= {"surface": "my.toml", "store": "lmdb:store", "models": "models", "log": "log"}
        front = application["deployments"][0]
        front["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
        # The test machine may be busy.
        front["user_config"] |= {"deadline_ms": 10_000, "stale_after_ms": 60_000}
        front["graceful_shutdown_timeout_s"] = 15
        self.document = document
        self.url = f"http://127.0.0.1:{port}"
        self.configure()

    @property
    def surface(self):
        """The surface that was deployed."""
        return read_surface(self.text)

    def configure(self, **live):
        """Write cluster.yaml with other live settings."""
        self.document["applications"][0]["deployments"][0]["user_config"] |= live
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(self.document))

    def write(self, text):
        """Edit the surface's file."""
        (self.folder / "my.toml").write_text(text)

    def publish(self, version):
        """Publish a model of the surface's file, and promote it."""
        text = (self.folder / "my.toml").read_text()
        surface, rng = read_surface(text), np.random.default_rng(11)
        schema = Schema(surface)
        data = build(schema, self.table)
        encoder = fit_encoder(surface, data.columns, data.matrix, category_strings(surface, self.table))
        files, manifest = artifact_files(random_network(rng, encoder, NetworkConfig()), rng)
        manifest |= {"version": version, "surface": "spaces", "state_fingerprint": schema.fingerprint}
        save(self.folder / "models" / version, files | {"surface.toml": text.encode()}, manifest)
        ModelRegistry(self.folder / "models").promote(version)

    def command(self, *words, code=0):
        """Run a command of `serve`, and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "serve", *words],
            capture_output=True,
            text=True,
            cwd=self.folder,
            check=False,
        )
        assert done.returncode == code, done.stderr[-3_000:]
        return done.stdout

    def deployed(self, *words):
        """Run a command that deploys the file as it is."""
        text = (self.folder / "my.toml").read_text()
        self.command(*words)
        self.text = text

    def processes(self, kind):
        """Return the processes of a deployment, or the supervisor."""
        if kind == "supervisor":
            return self.run_folder.supervisors()
        found = []
        for process in self.run_folder.processes():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if "ServeReplica" in line and kind in line:
                found.append(process)
        return found

    def kill(self, kind):
        """Kill one process, and wait for the one that Ray starts in its place."""
        before = {process.pid for process in self.processes(kind)}
        os.kill(min(before), signal.SIGKILL)
        if kind == "supervisor":
            psutil.wait_procs(self.processes(kind), 5.0)
            return
        until = time.monotonic() + RESTART_S
        while len({process.pid for process in self.processes(kind)} - {min(before)}) < len(before):
            assert time.monotonic() < until, f"no other {kind} came"
            time.sleep(0.2)
        # The new one answers once Serve finds it healthy; an event needs a writer.
        while not self.is_settled():
            assert time.monotonic() < until, f"the other {kind} does not answer"
            time.sleep(0.5)

    def is_settled(self):
        """Whether every replica is ready."""
        (app,) = self.run_folder.service().applications.values()
        replicas = [one.replicas for one in app.deployments.values()]
        return app.status == "RUNNING" and all(set(one) == {"RUNNING"} for one in replicas)

    def send(self):
        """Send events until they are acknowledged; each has an id of its own."""
        ids = [f"pinned-{len(self.acknowledged) + i}" for i in range(5)]
        records = [
            {"type": "event", "id": id_, "viewer": f"k{id_}", "candidate": self.rooms[0], "kind": "join"}
            for id_ in ids
        ]
        until = time.monotonic() + RESTART_S
        while True:
            response = self.post("/v1/events", {"records": records})
            if response is not None and response.status_code == 200:
                break
            assert time.monotonic() < until, response
            time.sleep(0.5)
        self.acknowledged += ids

    def post(self, path, body):
        """Return the answer over a new connection; None if there is none."""
        try:
            return httpx.post(f"{self.url}{path}", json=body, timeout=30, headers={"connection": "close"})
        except httpx.HTTPError:
            return None

    def look(self, *, is_popular=False):
        """Check that all replicas are the one service that was deployed.

        Return the sign of the scores: what orders by them changes with time.
        """
        self.send()
        surface, seen = self.surface, set()
        for number in range(ASKED):
            model = httpx.get(f"{self.url}/v1/model", timeout=30, headers={"connection": "close"}).json()
            assert model["surface_version"] == surface.version
            assert model["weights"] == surface.worth
            assert model["kill_switch"] == is_popular
            body = {"viewer": "nobody", "candidates": self.rooms, "traffic": "test"}
            answer = self.post("/v1/rank", body | {"request_id": f"{time.time()}-{number}"}).json()
            assert answer["surface_version"] == surface.version
            signs = {np.sign(one["score"] or 0) for one in answer["ranking"]}
            seen.add((answer["model"], answer["rung"], *answer["degraded"], *signs))
        assert len(seen) == 1, seen
        version, *_, sign = next(iter(seen))
        assert (version is None) == is_popular
        if version is not None:
            load_for(self.folder / "models" / version, Features(Schema(surface)))
        (app,) = self.run_folder.service().document["applications"]
        assert app["args"]["surface_text"] == self.text
        return sign


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    made = Service(folder)
    made.command("up", "--timeout", "180")
    yield made
    made.command("down")


def weights(service):
    """An edited weight ranks only once it is deployed, whichever replica is killed meanwhile."""
    assert service.look() == 1
    service.write(service.text.replace("join = 1\n", "join = -1\n", 1))
    service.kill("FeatureFetch")
    assert service.look() == 1
    assert "surface_text" in service.command("diff", code=1)
    service.deployed("up")
    assert service.look() == -1
    service.kill("FeatureFetch")
    assert service.look() == -1


def state(service):
    """An edited half-life leaves the writer its store; `load`, a model and a deploy roll it out."""
    service.write(service.text.replace('half_life = "10m"', 'half_life = "12m"'))
    service.kill("Ingest")
    service.look()
    assert "load" in service.command("diff", "--apply", code=1)
    service.look()
    service.command("load", "--surface", "my.toml", "--log", "log", "--store", "lmdb:store")
    service.publish("20260102T000000Z-0002")
    service.kill("FeatureFetch")
    service.look()
    service.deployed("diff", "--apply", "--yes")
    service.look()
    service.kill("Ingest")
    service.look()


def deletion(service):
    """Without the file the service goes on; the kill switch needs none, and no deploy ends it."""
    service.command("popular")
    (service.folder / "my.toml").unlink()
    service.kill("Scorer")
    service.kill("FeatureFetch")
    service.look(is_popular=True)
    assert "my.toml" in service.command("up", code=2) + "my.toml"
    service.write(service.text)
    service.configure(log_features=0.5)
    service.command("diff", "--apply", code=1)
    service.look(is_popular=True)
    service.command("popular", "--off")
    service.look()


def supervision(service):
    """A new supervisor deploys what was edited while there was none."""
    service.write(service.text.replace("[context]\n", '[context]\nzone = "category"\n'))
    service.kill("supervisor")
    service.kill_beside = service.processes("FeatureFetch")[0].pid
    os.kill(service.kill_beside, signal.SIGKILL)
    service.deployed("up")
    service.look()


def order(service):
    """A comment and another popular order wait for their deploy like everything else."""
    text = service.text.replace('popular = "audience"', 'popular = "recent_joins"')
    service.write("# Edited.\n" + text)
    for process in service.processes("FeatureFetch"):
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(1.0)
    service.kill("Scorer")
    service.look()
    service.deployed("up")
    service.look()


def test_what_is_edited_waits_for_a_deploy_whatever_is_killed(service):
    begin = time.monotonic()
    for sequence in (weights, state, deletion, supervision, order):
        sequence(service)
        print(f"{sequence.__name__}: {time.monotonic() - begin:.0f} s")
    service.command("down")
    log = read_log(service.folder / "log", service.surface, test_traffic=True)
    times = Counter(log.events["id"].to_pylist())
    assert {id_: times[id_] for id_ in service.acknowledged} == dict.fromkeys(service.acknowledged, 1)
    assert len(json.dumps(service.acknowledged)) > 0
