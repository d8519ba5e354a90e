"""Web server of the console: pages, their data, rankings to try. Nothing changes the service."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.contract.commands import key_header
from serve.contract.errors import TabrankError
from serve.contract.rankings import Reason
from serve.contract.reasons import in_words
from serve.http.docs import POLICY
from serve.operate.console.application import Application, applications
from serve.operate.console.watch import EVERY_S, Watch
from serve.operate.host.running_service import options_of
from serve.operate.host.state import DIRECT
from serve.operate.rollout.tables import read_shifts
from serve.operate.status.scrape import PageHistory, read_pages
from serve.operate.status.vitals import look, pages_of

HOST, PORT = "127.0.0.1", 8090
# Longer than any deadline that the service has by default.
ANSWER_S = 10.0
# Ray's agent takes 66 ms of a core for a page of metrics, and rankings wait meanwhile: read
# pages at every second look. They are renewed every 2 s, so that a fault is shown within 10 s.
PAGES_EVERY_S = 2 * EVERY_S
STATIC = Path(__file__).parent / "static"
KIT = Path(__file__).parents[2] / "report"
LIBRARIES = [KIT / "assets" / name for name in ("htm-preact.umd.js", "uPlot.iife.min.js", "uPlot.min.css")]
FILES = {path.name: path for path in (*STATIC.iterdir(), KIT / "look.css", *LIBRARIES)}
HEADERS = {
    "Content-Security-Policy": POLICY.decode(),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class OwnOrigin:
    """Refuse requests of other web pages: a foreign Host (DNS rebinding) or a foreign Origin."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = (f"{HOST}:{port}", f"localhost:{port}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI scope, with headers that bind the page to this origin."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_bound(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app, headers = self._app, Request(scope).headers
        host, origin = headers.get("host"), headers.get("origin")
        # Another page's image or script has no Origin; a link to this page may come from anywhere.
        site = headers.get("sec-fetch-site", "none") if scope["path"].startswith("/data/") else "none"
        is_ours = host in self._hosts and site in ("none", "same-origin")
        if not is_ours or origin not in (None, f"http://{host}"):
            app = PlainTextResponse(f"this console answers its own page: http://{self._hosts[0]}/\n", 403)
        await app(scope, receive, send_bound)


def console(watch: Watch, run: Path | None, address: str | None, port: int) -> ASGIApp:
    """Return the console as an ASGI application that listens on `port` of 127.0.0.1."""
    # The folders of a cluster at an address are not known.
    is_here = address is None or run is not None

    def asked(request: Request) -> Application:
        found, name = applications(watch.found), request.query_params.get("application")
        return next((app for app in found if app.name == name), found[0])

    async def file(request: Request) -> Response:
        path = FILES.get(request.path_params.get("name", "console.html"))
        return PlainTextResponse("no such page; see /\n", 404) if path is None else FileResponse(path)

    async def state(request: Request) -> Response:
        try:
            after_ms = float(request.query_params.get("after", 0))
        except ValueError:
            return JSONResponse({"detail": "after is a time in ms since 1970"}, 400)
        news = await watch.news(after_ms)
        return Response(msgspec.json.encode(news), media_type="application/json")

    def models(request: Request) -> Response:
        # A service that is gone has no metrics; its models are there.
        shifts = read_shifts(read_pages(pages_of(watch.found)))
        described = [app.described() for app in applications(watch.found) if is_here]
        given = options_of(run, address)
        return JSONResponse({"applications": described, "shifts": shifts, "options": given})

    def requests(request: Request) -> Response:
        return JSONResponse({"requests": asked(request).requests() if is_here else None})

    async def rank(request: Request) -> Response:
        # A form of another page cannot send this type.
        if request.headers.get("content-type") != "application/json":
            return JSONResponse({"detail": "send Content-Type: application/json"}, 415)
        return JSONResponse(*await run_in_threadpool(tried, asked(request).url, await request.body()))

    routes = [
        Route("/", file),
        Route("/{name}", file),
        Route("/data/state", state),
        Route("/data/models", models),
        Route("/data/requests", requests),
        Route("/data/rank", rank, methods=["POST"]),
    ]

    @asynccontextmanager
    async def reading(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(watch.keep_reading())
        yield
        task.cancel()

    return OwnOrigin(Starlette(routes=routes, lifespan=reading), port)


def tried(url: str, body: bytes) -> tuple[dict[str, Any], int]:
    """Rank a request as test traffic with reasons; return the service's answer and its status.

    Each ranked candidate also has its reasons in `words`. The API key of the environment goes to
    the service and never to the browser.
    """
    try:
        request = dict(json.loads(body)) | {"traffic": "test", "explain": True}
    except (ValueError, TypeError, RecursionError) as error:
        return {"detail": f"a request is a JSON object with viewer and candidates: {error}"}, 400
    headers = {"Content-Type": "application/json", **key_header()}
    try:
        asked = urllib.request.Request(f"{url}/v1/rank", json.dumps(request).encode(), headers)
        with DIRECT.open(asked, timeout=ANSWER_S) as response:
            status, answer = response.status, json.load(response)
        for ranked in answer["ranking"]:
            ranked["words"] = [in_words(msgspec.convert(one, Reason)) for one in ranked.get("reasons") or ()]
    except urllib.error.HTTPError as error:
        return _problem(error), error.code
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError, msgspec.ValidationError):
        where = f" at {url}" if url else ""
        return {"detail": f"no tabrank service answers{where}; start it: python -m serve up"}, 502
    return answer, status


def _problem(error: urllib.error.HTTPError) -> dict[str, Any]:
    with error:
        try:
            return dict(json.load(error))
        except (ValueError, TypeError):
            return {"detail": f"the service answered {error.code} {error.reason}"}


def serve(run: Path | None, address: str | None, port: int | None, progress: Callable[[str], None]) -> None:
    """Serve the console on 127.0.0.1 until interrupted; TabrankError where the port is in use."""
    listener = _listener(port)
    bound, history = listener.getsockname()[1], PageHistory(EVERY_S, PAGES_EVERY_S)
    # The service goes first.
    os.nice(10)
    watch = Watch(partial(look, run, address, history))
    progress(f"console: http://{HOST}:{bound}/ (Ctrl-C ends it, and not the service)")
    server(console(watch, run, address, bound)).run(sockets=[listener])


def server(app: ASGIApp) -> uvicorn.Server:
    """Return a server of an application."""
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))


def _listener(port: int | None) -> socket.socket:
    """Return a socket on the port; without one, on the usual or else on a free port."""
    try:
        return socket.create_server((HOST, port or PORT))
    except OSError as error:
        if port is None:
            return socket.create_server((HOST, 0))
        raise TabrankError(f"--port: {port} is not free on {HOST} ({error.strerror}); use another") from None
