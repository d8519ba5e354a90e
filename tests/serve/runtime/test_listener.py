"""Accepting connections under load, with the server and the event loop that Ray uses."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.runtime.fast_path import ACCEPTS, accept_more, drop_trailers

NUM_CLIENTS = 64


async def num_turns():
    """Return how many event-loop iterations pass until all waiting clients are accepted."""
    seen = set()

    async def app(scope, receive, send):
        seen.add(scope["client"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    listening = socket.create_server(("127.0.0.1", 0), backlog=NUM_CLIENTS)
    config = uvicorn.Config(app, lifespan="off", access_log=False, log_config=None, http="httptools")
    server = uvicorn.Server(config)
    clients = []
    for _ in range(NUM_CLIENTS):
        client = socket.create_connection(listening.getsockname())
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        clients.append(client)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    iterations = 0
    while len(seen) < NUM_CLIENTS and iterations < 1_000:
        iterations += bool(seen)
        await asyncio.sleep(0)
    server.should_exit = True
    for client in clients:
        client.close()
    await serving
    return iterations


@pytest.fixture
def startup():
    before = uvicorn.Server.startup
    yield before
    uvicorn.Server.startup = before


def test_waiting_connections_are_accepted_many_a_turn(startup):
    alone = uvloop.run(num_turns())
    accept_more()
    accept_more()
    together = uvloop.run(num_turns())
    assert alone >= NUM_CLIENTS - 1, "uvloop accepts more by itself now: `serve.runtime.fast_path` can go"
    assert together <= 4 * NUM_CLIENTS / ACCEPTS


async def headers_seen(*parts):
    """Return the headers that an application sees once it has read the request's body."""
    seen = []

    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        seen.extend(scope["headers"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", access_log=False, log_config=None, http="httptools")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.05)
    assert (await reader.readline()).startswith(b"HTTP/1.1 204")
    writer.close()
    server.should_exit = True
    await serving
    return seen


HEAD = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n"
BODY = b"2\r\n{}\r\n0\r\nx-api-key: stolen\r\n\r\n"


@pytest.mark.parametrize("parts", [[HEAD + b"\r\n" + BODY], [HEAD + b"\r\n", BODY]])
def test_what_comes_after_the_header_block_is_no_header(parts, monkeypatch):
    monkeypatch.setattr(HttpToolsProtocol, "on_headers_complete", HttpToolsProtocol.on_headers_complete)
    key = (b"x-api-key", b"stolen")
    assert key in asyncio.run(headers_seen(*parts)), "uvicorn drops trailers by itself now: this can go"
    drop_trailers()
    drop_trailers()
    seen = asyncio.run(headers_seen(*parts))
    assert (b"host", b"a") in seen
    assert key not in seen
