"""The live loop in one process: the edge, Ingest, a real store and a real log; the scorer is a small fake."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import asynccontextmanager, contextmanager

import httpx
import numpy as np
import uvicorn
from stub import MODEL, publish_stub
from tiny import TOML

from serve.config.settings import AppArgs, Arm, Experiment, UserConfig
from serve.features.matrix import Matrix
from serve.features.surface import load_surface
from serve.http.app import Edge
from serve.ingest.backfill import load
from serve.ingest.writer import MAX_LIVE, ingester
from serve.log.events import unpack
from serve.ranking.service import FeatureFetcher
from serve.rollout.registry import Releases


class Live:
    """A service of the small surface, its store filled from `log_folder`, its log in `served`."""

    def __init__(
        self, folder, log_folder=None, *, clock="event", store="lmdb:store", max_live=MAX_LIVE, **config
    ):
        (folder / "tiny.toml").write_text(TOML)
        publish_stub(folder / "models", TOML)
        self.folder = folder
        self.surface = load_surface(str(folder / "tiny.toml"))
        if log_folder:
            load(self.surface, log_folder, store, folder)
        self.max_live = max_live
        self.tell = lambda tally: None  # what Ingest tells its metrics
        self.args = AppArgs("tiny.toml", store, "models", "served", clock=clock)
        self.config = UserConfig(
            Experiment("launch", "s", (Arm("model", MODEL, 1.0),)), 1_000, **{"log_features": 1.0} | config
        )

    async def score(self, version, payload):
        """What the scorer answers."""
        return await score(version, payload)

    async def load(self, version):
        """What has the scorer ready for a version."""

    @asynccontextmanager
    async def running(self):
        """The service, until the block ends; then what was left is committed and rolled."""
        self.ingester = ingester(self.args, self.folder, self.tell, max_live=self.max_live)
        fetcher = FeatureFetcher(
            self.args, self.folder, self.score, self.load, self._take, roll_back=self._roll_back
        )
        fetcher.configure(self.config)
        await fetcher.refresh()
        self.fetcher = fetcher
        committing = asyncio.create_task(self.ingester.run())
        refreshing = asyncio.create_task(fetcher.refresh_forever())
        transport = httpx.ASGITransport(Edge(fetcher))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            self.client = client
            try:
                yield self
            finally:
                refreshing.cancel()
                await fetcher.outbox.flush()
                self.ingester.stop()
                await committing
                fetcher.live.close()

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

    async def _take(self, payload):
        return await self.ingester.take(unpack(payload), len(payload))

    async def _roll_back(self, version, verdict):
        Releases(self.folder / self.args.models, by="service").roll_back(version, verdict.reason)

    async def post(self, path, body):
        """The response to a JSON body."""
        content = body if isinstance(body, bytes) else json.dumps(body)
        return await self.client.post(path, content=content, headers={"content-type": "application/json"})

    async def events(self, *records):
        """What the service answers to these records."""
        response = await self.post("/v1/events", {"records": list(records)})
        assert response.status_code == 200, response.text
        return response.json()

    async def rank(self, viewer="ann", candidates=("a", "b", "d"), now_ms=50_000, **more):
        """The service's ranking."""
        time = {"now_ms": now_ms} if self.args.clock == "event" else {}
        body = {"viewer": viewer, "candidates": list(candidates)} | time | more
        response = await self.post("/v1/rank", body)
        assert response.status_code == 200, response.text
        return response.json()

    def run(self, scenario):
        """What the scenario, given this service, answers."""

        async def alive():
            async with self.running():
                return await scenario(self)

        return asyncio.run(alive())


async def score(version, payload):
    """A candidate's price as its score, 0.5 where it has none."""
    price = Matrix.from_bytes(payload).numeric[:, 0]
    return np.where(np.isnan(price), 0.5, price / 10).astype(np.float32).tobytes()


def features(answer, candidate):
    """The features of a candidate in an answer that explains itself."""
    return next(r["features"] for r in answer["ranking"] if r["candidate"] == candidate)


def event(id_, kind="join", candidate="a", viewer="ann", ts_ms=51_000, **more):
    """One event as a client sends it."""
    record = {"type": "event", "id": id_, "kind": kind, "candidate": candidate, "viewer": viewer}
    return record | ({"ts_ms": ts_ms} if ts_ms is not None else {}) | more
