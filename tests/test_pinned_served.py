"""On a running service, what runs is what was deployed: each edit is followed by a kill."""

from __future__ import annotations

import contextlib
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
# The replicas of FeatureFetch, and the ports on which they answer behind HAProxy.
NUM_FRONTS, OWN_PORTS = 2, range(30_000, 31_000)
# Another process has taken the place of a killed one within this time, also on a busy machine.
RESTART_S = 60.0
CLOSE = {"connection": "close"}


class Service:
    """The service with two replicas, its files, and what its callers know."""

    def __init__(self, folder):
        self.folder, self.run_folder = folder, RunFolder(folder / "var/run")
        # The text that was deployed.
        self.text = TEXT
        self.acknowledged = []
        simulate(folder / "log", rows=8_000, viewers=60, days=0.2)
        surface = read_surface(TEXT)
        self.table = read_log(folder / "log", surface)
        self.rooms = list(dict.fromkeys(self.table.candidates["id"].to_pylist()))[-8:]
        load(surface, folder / "log", "lmdb:store", folder)
        self.edit(TEXT)
        self.publish("20260101T000000Z-0001")
        self.document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.document["http_options"] |= {"port": port, "request_timeout_s": 30}
        (application,) = self.document["applications"]
        application["args"] |= {"surface": "my.toml", "store": "lmdb:store", "models": "models", "log": "log"}
        front = application["deployments"][0]
        front["autoscaling_config"] |= {"min_replicas": NUM_FRONTS, "max_replicas": NUM_FRONTS}
        front["graceful_shutdown_timeout_s"] = 15
        # The test machine may be busy.
        self.configure(deadline_ms=10_000, stale_after_ms=60_000)

    def configure(self, **live):
        """Edit the live settings in cluster.yaml."""
        self.document["applications"][0]["deployments"][0]["user_config"] |= live
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(self.document))

    def edit(self, text):
        """Edit the surface's file."""
        (self.folder / "my.toml").write_text(text)

    def publish(self, version):
        """Publish a model of the surface's file, and promote it."""
        text, rng = (self.folder / "my.toml").read_text(), np.random.default_rng(11)
        surface = read_surface(text)
        data = build(Schema(surface), self.table)
        encoder = fit_encoder(surface, data.columns, data.matrix, category_strings(surface, self.table))
        files, manifest = artifact_files(random_network(rng, encoder, NetworkConfig()), rng)
        about = {"version": version, "surface": "spaces", "state_fingerprint": Schema(surface).fingerprint}
        save(self.folder / "models" / version, files | {"surface.toml": text.encode()}, manifest | about)
        ModelRegistry(self.folder / "models").promote(version)

    def command(self, *words, code=0, of="serve"):
        """Run a command, and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", of, *words], capture_output=True, text=True, cwd=self.folder, check=False
        )
        assert done.returncode == code, done.stderr[-3_000:]
        return done.stdout + done.stderr

    def deploy(self, *words):
        """Run a command that deploys the files."""
        text = (self.folder / "my.toml").read_text()
        self.command(*words)
        self.text = text

    def processes(self, kind):
        """Return the processes of a deployment, or the supervisor."""
        if kind == "supervisor":
            return self.run_folder.supervisors()
        found = []
        for process in self.run_folder.processes():
            # It may just have ended.
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if "ServeReplica" in line and kind in line:
                    found.append(process)
        return found

    def kill(self, kind):
        """Kill a process by its id, and wait until Ray has started another one in its place."""
        before = {process.pid for process in self.processes(kind)}
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        if kind != "supervisor":
            self.wait(
                lambda: len({process.pid for process in self.processes(kind)} - {killed}) == len(before)
            )
            self.wait(self.is_settled)

    def wait(self, is_so):
        """Wait until something is so."""
        until = time.monotonic() + RESTART_S
        while not is_so():
            assert time.monotonic() < until
            time.sleep(0.3)

    def is_settled(self):
        """Whether each replica that is wanted runs, and no other."""
        (application,) = self.run_folder.service().applications.values()
        replicas = [one.replicas for one in application.deployments.values()]
        return application.status == "RUNNING" and all(set(one) == {"RUNNING"} for one in replicas)

    def addresses(self):
        """Return the own addresses of the replicas of FeatureFetch that answer."""
        found = []
        for process in self.processes("FeatureFetch"):
            with contextlib.suppress(psutil.Error, httpx.HTTPError):
                ports = {one.laddr.port for one in process.net_connections("tcp") if one.status == "LISTEN"}
                (port,) = ports.intersection(OWN_PORTS) or [0]
                url = f"http://127.0.0.1:{port}"
                if port and httpx.get(f"{url}/readyz", timeout=5, headers=CLOSE).status_code == 200:
                    found.append(url)
        return found

    def send(self, viewer):
        """Send events until they are acknowledged; return their ids."""
        number = time.monotonic_ns()
        ids = [f"pinned-{viewer}-{number}-{i}" for i in range(4)]
        about = {"type": "event", "kind": "join", "candidate": self.rooms[0]}
        records = [about | {"id": id_, "viewer": f"{viewer}-{number}-{i}"} for i, id_ in enumerate(ids)]
        self.wait(lambda: self.is_taken(records))
        return ids

    def is_taken(self, records):
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(f"{self.url}/v1/events", json={"records": records}, timeout=30, headers=CLOSE)
            return answer.status_code == 200
        return False

    def look(self, *, is_popular=False):
        """Check that all replicas are one service, the one that was deployed; return its sign.

        That is the sign of all scores: the order itself changes with the time.
        """
        self.acknowledged += self.send("k")
        (application,) = self.run_folder.service().document["applications"]
        assert application["args"]["surface_text"] == self.text
        surface, seen = read_surface(self.text), set()
        self.wait(lambda: len(self.addresses()) == NUM_FRONTS)
        # HAProxy passes a request to either of them, and may not know a new one yet.
        for address in [self.url, *self.addresses()] * 2:
            model = httpx.get(f"{address}/v1/model", timeout=30, headers=CLOSE).json()
            assert model["surface_version"] == surface.version
            assert model["weights"] == surface.worth
            assert model["kill_switch"] == is_popular
            body = {"viewer": "nobody", "candidates": self.rooms, "traffic": "test"}
            answer = httpx.post(f"{address}/v1/rank", json=body, timeout=30, headers=CLOSE).json()
            assert answer["surface_version"] == surface.version
            signs = {np.sign(one["score"] or 0) for one in answer["ranking"]}
            seen.add((answer["model"], *answer["degraded"], *signs))
        ((version, *degraded, sign),) = seen
        if is_popular:
            assert degraded == ["kill_switch"]
        else:
            assert degraded == []
            load_for(self.folder / "models" / version, Features(Schema(surface)))
        return sign


@pytest.fixture
def service(tmp_path):
    made = Service(tmp_path)
    made.command("up", "--timeout", "180")
    yield made
    made.command("down")


def weights(service):
    """An edited weight does not rank before it is deployed, whichever replica is killed."""
    assert service.look() == 1
    service.edit(service.text.replace("join = 1\n", "join = -1\n"))
    service.kill("FeatureFetch")
    assert service.look() == 1
    assert "ordered by other weights" in service.command("diff", code=1)
    service.deploy("up")
    assert service.look() == -1
    service.kill("FeatureFetch")
    assert service.look() == -1


def state(service):
    """An edited half-life leaves the writer its store until `load`, a model and a deploy."""
    service.edit(service.text.replace('half_life = "10m"', 'half_life = "12m"'))
    service.kill("Ingest")
    service.look()
    assert "refused" in service.command("diff", "--apply", code=1)
    service.command("load", "--surface", "my.toml", "--log", "log", "--store", "lmdb:store")
    service.publish("20260102T000000Z-0002")
    service.kill("FeatureFetch")
    service.look()
    service.deploy("diff", "--apply", "--yes")
    service.look()
    service.kill("Ingest")
    service.look()


def deletion(service):
    """Without the file the service goes on, and the kill switch too, which no deploy ends."""
    service.command("popular")
    (service.folder / "my.toml").unlink()
    service.kill("Scorer")
    service.kill("FeatureFetch")
    service.look(is_popular=True)
    assert "my.toml: no such surface file" in service.command("up", code=2)
    service.edit(service.text)
    service.configure(log_features=0.5)
    assert "ends the kill switch" in service.command("diff", "--apply", code=1)
    service.look(is_popular=True)
    service.command("popular", "--off")
    service.look()


def supervision(service):
    """What is edited while there is no supervisor waits for `up`, which starts another one."""
    service.edit(service.text.replace("[context]\n", '[context]\nzone = "category"\n'))
    service.kill("supervisor")
    (killed, _) = service.processes("FeatureFetch")
    killed.kill()
    service.wait(lambda: len({one.pid for one in service.processes("FeatureFetch")} - {killed.pid}) == 2)
    service.look()
    service.deploy("up")
    service.look()


def erasure(service):
    """A killed writer brings no erased viewer back; an edit of comments alone waits too."""
    ids = service.send("gone")
    viewers = service.folder / "gone.txt"
    viewers.write_text("".join(id_.removeprefix("pinned-") + "\n" for id_ in ids))
    service.edit("# Edited.\n" + service.text)
    service.kill("Ingest")
    service.command("forget", "--log", "log", "--viewers", "gone.txt", of="training")
    service.kill("Ingest")
    service.look()
    service.deploy("up")
    service.look()


def test_what_is_edited_waits_for_a_deploy_whatever_is_killed(service):
    begin = time.monotonic()
    for sequence in (weights, state, deletion, supervision, erasure):
        sequence(service)
        print(f"{sequence.__name__}: {time.monotonic() - begin:.0f} s")
    service.command("down")
    log = read_log(service.folder / "log", read_surface(service.text), test_traffic=True)
    times = Counter(log.events["id"].to_pylist())
    assert {id_: times[id_] for id_ in service.acknowledged} == dict.fromkeys(service.acknowledged, 1)
    assert not [viewer for viewer in log.events["viewer"].to_pylist() if str(viewer).startswith("gone")]
