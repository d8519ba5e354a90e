"""Live service in one process, with a real store and log, and a small fake scorer."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import asynccontextmanager, contextmanager

import httpx
import numpy as np
import uvicorn

from serve.config.settings import AppArgs, Arm, Experiment, UserConfig
from serve.features.matrix import Matrix
from serve.features.surface import load_surface
from serve.http.app import Edge
from serve.ingest.backfill import load
from serve.ingest.writer import MAX_LIVE, Ingester
from serve.log.events import unpack
from serve.model.scorer_cache import timed
from serve.ranking.service import RankingService
from serve.ranking.telemetry import Metrics
from serve.ranking.upkeep import keep_up, refresh
from serve.rollout.registry import ModelRegistry
from tests.support.filled_store import STORE, fill_store
from tests.support.small_surface import TOML
from tests.support.stub_artifact import MODEL, publish_stub


class Live:
    """Service of the small surface; `log_folder` fills its store, and `served` is its log."""

    def __init__(
        self, folder, log_folder=None, *, clock="event", store=STORE, max_live=MAX_LIVE, toml=None, **config
    ):
        toml = toml or TOML
        (folder / "tiny.toml").write_text(toml)
        publish_stub(folder / "models", toml)
        self.folder = folder
        self.surface = load_surface(str(folder / "tiny.toml"))
        if log_folder and store == STORE:
            fill_store(folder / "tiny.toml", log_folder)
        elif log_folder:
            load(self.surface, log_folder, store, folder)
        self.max_live = max_live
        # While this is True, Ingest takes no records.
        self.is_ingest_away = False
        # Callback for the numbers that Ingest reports to its metrics.
        self.on_tally = lambda tally: None
        # Versions of the model with which the replica scores by itself; None if it may not.
        self.in_process = None
        # Receiver of the replica's measurements.
        self.metrics = Metrics()
        self.args = AppArgs("tiny.toml", store, "models", "served", clock=clock)
        # Clients and the loading of models share this thread, so its delays say nothing about
        # load, and load shedding is off.
        settings = {"log_features": 1.0, "load_shedding": False} | config
        self.config = UserConfig(Experiment("launch", "s", (Arm("model", MODEL, 1.0),)), 1_000, **settings)

    async def score(self, version, payload):
        """Return the fake scorer's answer."""
        return await score(version, payload)

    async def load(self, version):
        """Load a version into the scorer."""

    @asynccontextmanager
    async def running(self):
        """Run the service until the block ends; then commit and flush the rest."""
        self.ingester = Ingester(self.args, self.folder, self.on_tally, max_live=self.max_live)
        fetcher = RankingService(self.args, self.folder, self, self.metrics, self.in_process)
        fetcher.settings.start(self.config)
        await refresh(fetcher)
        self.fetcher = fetcher
        committing = asyncio.create_task(self.ingester.run())
        # As a replica does, wait for the heartbeat: the store may have been filled long ago.
        for _ in range(50):
            if fetcher.event_clock or fetcher.live.error or not fetcher.live.silent_s:
                break
            await asyncio.sleep(0.1)
            await refresh(fetcher)
        refreshing = asyncio.create_task(keep_up(fetcher))
        transport = httpx.ASGITransport(Edge(fetcher))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            self.client = client
            try:
                yield self
            finally:
                refreshing.cancel()
                await fetcher.exposure_buffer.flush()
                self.ingester.stop()
                await committing
                fetcher.live.close()

    @contextmanager
    def listening(self):
        """Listen until the block ends, and yield the address; then commit and flush everything."""
        ready = threading.Event()

        async def asgi(scope, receive, send):
            await self.edge(scope, receive, send)

        config = uvicorn.Config(asgi, port=0, lifespan="off", log_level="error")
        server = uvicorn.Server(config)

        async def serve():
            async with self.running():
                await refresh(self.fetcher)
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

    async def ingest(self, payload):
        """Take packed records, as the writer does, unless it is away."""
        if self.is_ingest_away:
            raise OSError("gone")
        return await self.ingester.take(unpack(payload), len(payload))

    async def roll_back(self, version, verdict):
        """Roll a version back, as the writer does."""
        surface = self.args.load_surface(self.folder)
        ModelRegistry(self.folder / self.args.models, surface).roll_back(version, verdict.reason)

    async def post(self, path, body):
        """Return the response to a JSON body."""
        content = body if isinstance(body, bytes) else json.dumps(body)
        return await self.client.post(path, content=content, headers={"content-type": "application/json"})

    async def events(self, *records):
        """Post records and return the service's answer."""
        response = await self.post("/v1/events", {"records": list(records)})
        answer = response.json()
        assert response.status_code == (207 if answer.get("rejected") else 200), response.text
        return answer

    async def rank(self, viewer="ann", candidates=("a", "b", "d"), now_ms=50_000, **more):
        """Return the service's ranking."""
        time = {"now_ms": now_ms} if self.args.clock == "event" else {}
        body = {"viewer": viewer, "candidates": list(candidates)} | time | more
        response = await self.post("/v1/rank", body)
        assert response.status_code == 200, response.text
        return response.json()

    def run(self, scenario):
        """Run a scenario with this service, and return its result."""

        async def alive():
            async with self.running():
                return await scenario(self)

        return asyncio.run(alive())


async def score(version, payload):
    """Score candidates by their price; 0.5 without one."""
    price = Matrix.from_bytes(payload).numeric[:, 0]
    return timed(np.where(np.isnan(price), 0.5, price / 10).astype(np.float32).tobytes(), 1.0)


def features(answer, candidate):
    """Return the features of a candidate in an answer with explanations."""
    return next(r["features"] for r in answer["ranking"] if r["candidate"] == candidate)


def event(id_, kind="join", candidate="a", viewer="ann", ts_ms=51_000, **more):
    """Return an event as a client sends it."""
    record = {"type": "event", "id": id_, "kind": kind, "candidate": candidate, "viewer": viewer}
    return record | ({"ts_ms": ts_ms} if ts_ms is not None else {}) | more
