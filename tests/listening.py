"""A service of the simulated world on a port of its own, without Ray, and a model for it."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from contextlib import contextmanager

import numpy as np
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

SURFACE = load_surface("spaces")


def write_model(folder, log_folder, **about):
    log = read_log(log_folder, SURFACE)
    data = build(Schema(SURFACE), log)
    rng = np.random.default_rng(0)
    encoder = fit_encoder(SURFACE, data.columns, data.matrix, category_strings(SURFACE, log))
    files, manifest = artifact_files(random_network(rng, encoder, NetworkConfig(width=4, n_steps=1)), rng)
    about = {"surface": SURFACE.name, "surface_fingerprint": SURFACE.fingerprint} | about
    save(folder, files | {"surface.toml": SURFACE.text.encode()}, manifest | about)


class Service(Live):
    """A service of the simulated world on a port of its own, filled from the log `a`, which it goes on with."""

    def __init__(self, home, folder, *, clock="event", **config):
        super().__init__(folder)
        shutil.copytree(home / "a", folder / "a")
        self.surface = SURFACE
        load(SURFACE, folder / "a", "lmdb:store", folder)
        promote(folder / "models", publish(home / "model", folder / "models"))
        self.args = AppArgs("spaces", "lmdb:store", "models", "a", clock=clock)
        experiment = Experiment("launch", "s", (Arm("model", "current", 1.0),))
        self.config = UserConfig(**{"experiment": experiment, "log_features": 1.0} | config)
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

        def run():
            try:
                asyncio.run(serve())
            finally:
                ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        assert ready.wait(30)
        try:
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


def command(*arguments, code=0):
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == code, (done.stdout, done.stderr)
    return json.loads(done.stdout) if code < 2 else done.stderr.splitlines()[-1]
