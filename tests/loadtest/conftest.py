"""Stub services on free ports, and a small workspace for measurements of the real service."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from loadtest.targets.workspace import Workspace


@dataclass
class Stub:
    """HTTP stub of the service: its next answers, and its received requests. Times in seconds."""

    rung: str = "full"
    model: str | None = "20261124T145959Z-ab12"
    status: int = 200
    wait_s: float = 0.0
    share_bad: float = 1.0
    close: bool = False
    drop_last: bool = False
    port: int = 0
    requests: list[dict] = field(default_factory=list)
    num_connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, request: dict) -> tuple[int, dict]:
        bad = len(self.requests) % 100 < self.share_bad * 100
        if self.status != 200 and bad:
            return self.status, {"detail": "as the test says"}
        rung = self.rung if bad else "full"
        shown = request["candidates"][: -1 if self.drop_last else None]
        scored = rung == "full" and self.model is not None
        ranking = [
            {"candidate": c, "score": 0.5 if scored else None, "position": i + 1} for i, c in enumerate(shown)
        ]
        return 200, {"request_id": "r", "arm": "model", "model": self.model, "rung": rung, "ranking": ranking}

    def respond(self, path: str, request: dict) -> tuple[int, dict]:
        """Answer a ranking; every other request gets a 404."""
        if not request:
            return 404, {"detail": f"there is no {path}"}
        self.requests.append(request)
        return self.answer(request)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
                request = json.loads(await reader.readexactly(length) or "{}")
                status, answer = self.respond(head.split()[1], request)
                if self.wait_s:
                    await asyncio.sleep(self.wait_s)
                body = json.dumps(answer).encode()
                connection = "close" if self.close else "keep-alive"
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: {connection}\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                if self.close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@dataclass
class LiveStub(Stub):
    """Stub that also accepts events, which its rankings show `shows_after_s` later, or never."""

    shows_after_s: float | None = 0.1
    events_status: int = 200
    # Kind of event to reject.
    refuses: str = ""
    # Number of rankings with the rung full; all later ones are fallbacks.
    full_until: int | None = None
    # Score of a viewer and a candidate to rank by; None keeps the given order.
    score: Callable[[str, str], float] | None = None
    records: list[dict] = field(default_factory=list)
    # Time at which each id was first posted.
    known: dict[str, float] = field(default_factory=dict)

    def respond(self, path: str, request: dict) -> tuple[int, dict]:
        if path == "/v1/model":
            return 200, {
                "surface": "any",
                "outcomes": {"join": {"event": "join", "within_ms": 1}},
                "features": [],
            }
        if path == "/v1/events":
            return self.take(request["records"])
        if self.score:
            score = self.score
            ordered = sorted(request["candidates"], key=lambda c: -score(request["viewer"], c))
            request = {**request, "candidates": ordered}
        status, answer = super().respond(path, request)
        if self.full_until is not None and len(self.requests) > self.full_until:
            answer["rung"] = "fallback"
        fell_back = answer.get("rung") == "fallback"
        answer |= {
            "unknown_viewer": not fell_back and not self.shows(request["viewer"]),
            "unknown_candidates": [c for c in request["candidates"] if not self.shows(c)],
            "freshness_ms": 7.5,
        }
        return status, answer

    def take(self, records: list[dict]) -> tuple[int, dict]:
        if self.events_status != 200:
            return self.events_status, {"detail": "the log is full"}
        good = [record for record in records if record.get("kind") != self.refuses or not self.refuses]
        self.records += good
        now = time.monotonic()
        for record in good:
            self.known.setdefault(record["viewer"] if record["type"] == "event" else record.get("id"), now)
        refused = [
            {"pointer": f"/records/{i}", "detail": "no such kind"}
            for i, record in enumerate(records)
            if record not in good
        ]
        return 207 if refused else 200, {"accepted": len(good), "duplicates": 0, "rejected": refused}

    def shows(self, name: str) -> bool:
        at = self.known.get(name)
        return (
            at is not None and self.shows_after_s is not None and time.monotonic() - at >= self.shows_after_s
        )


@pytest.fixture
def stub() -> Iterator[Stub]:
    with served(Stub()) as service:
        yield service


@pytest.fixture
def live_stub() -> Iterator[LiveStub]:
    with served(LiveStub()) as service:
        yield service


@pytest.fixture(scope="module")
def shared_stub() -> Iterator[Stub]:
    """Stub for several tests that check the same run."""
    with served(Stub()) as service:
        yield service


@pytest.fixture(scope="module")
def shared_live_stub() -> Iterator[LiveStub]:
    """Stub for several tests that check the same run."""
    with served(LiveStub()) as service:
        yield service


Served = TypeVar("Served", bound=Stub)


@contextmanager
def served(service: Served) -> Iterator[Served]:
    """Serve until the block ends."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    stop: list[Callable[[], None]] = []

    async def main() -> None:
        over = asyncio.Event()
        stop.append(lambda: loop.call_soon_threadsafe(over.set))
        server = await asyncio.start_server(service.serve, "127.0.0.1", 0, backlog=2048)
        service.port = server.sockets[0].getsockname()[1]
        started.set()
        await over.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert started.wait(5)
    try:
        yield service
    finally:
        stop[0]()
        thread.join(5)
        loop.close()


@pytest.fixture(scope="session")
def bench_work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Complete workspace made in this process: simulated log, random network, model and store."""
    import numpy as np

    from serve.features.rows import Schema
    from serve.features.surface import load_surface
    from serve.ingest.backfill import load
    from serve.log.reader import read_log
    from serve.model.artifact import CURRENT, point, publish, save
    from tests.support.networks import artifact_files, random_network
    from training.data.dataset import build
    from training.data.encoding import category_strings, fit_encoder
    from training.network.network import NetworkConfig
    from training.world.simulate import simulate

    work, rng = Workspace(tmp_path_factory.mktemp("bench")), np.random.default_rng(11)
    work.data.mkdir()
    simulate(work.log, rows=8_000, viewers=60, days=0.2)
    surface = load_surface("spaces")
    table = read_log(work.log, surface)
    data = build(Schema(surface), table)
    encoder = fit_encoder(surface, data.columns, data.matrix, category_strings(surface, table))
    files, manifest = artifact_files(random_network(rng, encoder, NetworkConfig()), rng)
    save(work.data / "model", files | {"surface.toml": surface.text.encode()}, manifest)
    point(work.data / "models", CURRENT, publish(work.data / "model", work.data / "models"))
    load(surface, work.log, "lmdb:store", work.data)
    return work
