"""A log played through a service over real HTTP: its scores are the evaluation's, its log passes the audit."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from live import Live
from networks import artifact_files, random_network
from typer.testing import CliRunner

from serve.artifact import promote, publish, save
from serve.edge import Edge
from serve.load import load
from serve.log import read_log
from serve.scoring import ModelHolder
from serve.settings import AppArgs, Arm, Experiment, UserConfig
from serve.state import Schema
from serve.surface import load_surface
from training.__main__ import app
from training.dataset import build
from training.encoding import category_strings, fit_encoder
from training.network import NetworkConfig
from training.split import split
from training.world.simulate import simulate

SURFACE = load_surface("spaces")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A simulated log in two parts, and an artifact for it."""
    home = tmp_path_factory.mktemp("replay")
    simulate(home / "log", rows=6_000, viewers=60, days=0.15)
    split(home / "log", 0.4, home / "a", home / "b")
    write_model(home / "model", home / "a")
    return home


def write_model(folder, log_folder, surface=SURFACE):
    log = read_log(log_folder, surface)
    data = build(Schema(surface), log)
    rng = np.random.default_rng(0)
    encoder = fit_encoder(surface, data.columns, data.matrix, category_strings(surface, log))
    files, manifest = artifact_files(random_network(rng, encoder, NetworkConfig(width=4, n_steps=1)), rng)
    about = {"surface": surface.name, "surface_fingerprint": surface.fingerprint}
    save(folder, files | {"surface.toml": surface.text.encode()}, manifest | about)


class Service(Live):
    """A service of the simulated world on a port of its own, filled from the log `a`, which it goes on with."""

    def __init__(self, home, folder, *, clock="event", **config):
        shutil.copytree(home / "a", folder / "a")
        self.folder = folder
        self.surface = SURFACE
        load(SURFACE, folder / "a", "lmdb:store", folder)
        promote(folder / "models", publish(home / "model", folder / "models"))
        self.args = AppArgs("spaces", "lmdb:store", "models", "a", clock=clock)
        experiment = Experiment("launch", "s", (Arm("model", "current", 1.0),))
        self.config = UserConfig(experiment, **{"log_features": 1.0} | config)
        self.models = ModelHolder(folder / "models", "onnx")

    async def score(self, version, payload):
        return self.models.score(version, payload)

    @contextmanager
    def listening(self):
        """Its address, until the block ends; then all is committed and rolled."""
        ready = threading.Event()

        async def asgi(scope, receive, send):
            await self.edge(scope, receive, send)

        config = uvicorn.Config(asgi, port=0, lifespan="off", log_level="error")
        server = uvicorn.Server(config)

        async def serve():
            async with self.running():
                await self.fetcher.refresh()
                self.edge = Edge(self.fetcher)
                config.load()
                server.lifespan = config.lifespan_class(config)
                await server.startup()
                ready.set()
                await server.main_loop()
                await server.shutdown()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        assert ready.wait(30)
        try:
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def service(home, tmp_path):
    return Service(home, tmp_path)


def command(*arguments, code=0):
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == code, (done.stdout, done.stderr)
    return json.loads(done.stdout) if code < 2 else done.stderr.splitlines()[-1]


def test_a_played_log_is_scored_as_it_is_evaluated_and_leaves_a_log_that_passes_the_audit(home, service):
    model, history = ("--model", home / "model"), ("--history", home / "a")
    with service.listening() as url:
        out = service.folder / "out"
        found = command("replay", "--log", home / "b", "--url", url, *model, *history, "--out", out)
    evaluated = command("evaluate", *model, *history, "--log", home / "b")
    assert found["held"] is True
    assert found["by_rung"] == {"full": found["rankings"]}
    assert (found["rows"], found["slates"]) == (evaluated["rows"], evaluated["slates"])
    assert found["slates"] > 10
    assert found["max_score_difference"] < 1e-5
    for name, within in (("ndcg@10", 5e-4), ("auc", 1e-5), ("logloss", 1e-5)):
        assert found[name] == pytest.approx(evaluated["model"][name], abs=within)
    assert json.loads((out / "report.json").read_text()) == found
    assert len(pq.read_table(out / "scores.parquet")) >= found["rows"]

    audited = command("audit", "--log", service.folder / "a", "--surface", "spaces", *model)
    assert audited["held"] is True
    assert audited["exposures"] == found["rankings"]
    assert audited["max"] <= 1e-6
    assert audited["model"]["rows"] == audited["rows"]
    assert audited["model"]["max_difference"] <= 1e-5
