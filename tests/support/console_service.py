"""Console around a fake service: states as `vitals.look` returns them, and a stub that ranks."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from msgspec import convert

from serve.operate.console.server import _listener, console, server
from serve.operate.console.watch import Watch
from serve.operate.status.report import Report

MODEL = "20260131T120000Z-ab12"
ARMS = [
    {"name": "model", "scorer": "current", "share": 0.5, "model": MODEL, "weights": {"join": 1.0}},
    {"name": "popular", "scorer": "popular", "share": 0.5, "model": None, "weights": {}},
]
# As in rooms: whether the viewer joins. Left out are the keys that the console does not read.
JOIN = {"event": "join", "within_ms": 1_800_000, "until": None, "sum": None, "cap": None}
REASON = {
    "feature": "host_affinity",
    "label": "joined this host's rooms",
    "value": 0.31,
    "typical": 0.05,
    "unit": "joins",
    "contribution": 0.83,
}
ANSWER = {
    "request_id": "r1",
    "surface": "spaces",
    "surface_version": "5f0c1d2e3b4a",
    "experiment": "launch",
    "arm": "model",
    "model": MODEL,
    "rung": "full",
    "degraded": [],
    "unknown_viewer": False,
    "unknown_candidates": [],
    "freshness_ms": 9.8,
    "timing_ms": {"queue": 0.6, "features": 0.9, "score": 5.0, "total": 6.5},
    "ranking": [
        {
            "candidate": "s2",
            "score": 0.0918,
            "position": 1,
            "features": {"host_affinity": 0.05000000074505806, "topic": "jazz", "tags": []},
            "reasons": [REASON, REASON | {"label": "people in the room", "contribution": -0.2}],
        },
        {"candidate": "s1", "score": None, "position": 2, "features": {}, "reasons": None},
    ],
}


def healthy(url="http://127.0.0.1:8000", **more):
    """Return the state of a healthy service under load."""
    deployment = {"status": "HEALTHY", "target": 1, "replicas": {"RUNNING": 1}, "message": "", "ids": []}
    app = {
        "import_path": "serve.app:build",
        "route_prefix": "/",
        "deployments": dict.fromkeys(("FeatureFetch", "Scorer", "Ingest"), deployment),
    }
    traffic = {
        "window_s": 10.0,
        "rate_rps": 903.0,
        "p50_ms": 5.8,
        "p90_ms": 11.9,
        "p99_ms": 24.6,
        "freshness_ms": 105.0,
        "rungs": {"full": 0.998, "fallback": 0.002},
        "reasons": {"deadline": 0.002},
        "arms": {"model": 0.499, "popular": 0.501},
        "refused_share": 0.0,
        "error_share": 0.0,
        "client_error_share": 0.0,
        "errors": {},
        "records_rps": {"accepted": 412.0, "duplicate": 1.5, "rejected": 0.4},
        "candidates": 496_650,
        "unknown_share": 0.004,
        "viewers": 8_600,
        "unknown_viewer_share": 0.031,
    }
    report = {
        "state": "ready",
        "url": url,
        "health": {"state": "healthy", "line": "healthy", "remedy": None, "runbook": None},
        "causes": [],
        "applications": {"spaces": app},
        "surfaces": {
            "spaces": {
                "model": MODEL,
                "experiment": {"name": "launch", "holdout": 0.0, "arms": ARMS},
                "outcomes": {"join": JOIN},
                "weights": {"join": 1.0},
            }
        },
        "traffic": traffic,
        "memory": {"used_mib": 2855, "limit_mib": 6144},
        "memory_mib": 1375,
        "restarts": {"spaces/Scorer": {"count": 1, "last": "its process ended", "at": None}},
        "changes": [{"at": "2026-01-31T12:00:00+00:00", "what": f"model {MODEL}: promoted by the command"}],
    }
    return convert(report | more, Report)


def degraded(**more):
    """Return the state of a service without a model, with one advice."""
    cause = {
        "name": "no_model",
        "where": "spaces",
        "text": "No model is promoted, so every ranking has the popular order.",
        "remedy": "Publish one: python -m training publish --model var/model.",
        "runbook": "docs/runbook.md#tabrankfallback",
        "advice": False,
    }
    advice = cause | {"name": "x", "text": "The names are those of the shipped file.", "advice": True}
    health = {
        "state": "degraded",
        "line": cause["text"],
        "remedy": cause["remedy"],
        "runbook": cause["runbook"],
    }
    return healthy(**{"health": health, "causes": [cause, advice]} | more)


def gone():
    """Return the state where no service runs."""
    line = "No service runs in var/run."
    health = {"state": "down", "line": line, "remedy": "Start it: python -m serve up", "runbook": None}
    return convert({"state": "stopped", "health": health}, Report)


class Service:
    """Stub of a service: it answers each ranking with `answer`, and keeps the requests."""

    def __init__(self):
        self.requests, self.answer, self.status = [], ANSWER, 200
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                service.requests.append((self.path, dict(self.headers), json.loads(body)))
                content = json.dumps(service.answer).encode()
                self.send_response(service.status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    @contextmanager
    def running(self):
        """Listen until the block ends."""
        thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self.http.shutdown()
            thread.join()
            self.http.server_close()


@contextmanager
def listening(look, run, port=None, every_s=0.2, points=()):
    """Run a console of these states until the block ends, and yield its URL."""
    listener = _listener(port)
    bound = listener.getsockname()[1]
    watch = Watch(look, every_s)
    watch.points.extend(points)
    running = server(console(watch, run, None, bound))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound}/"
    finally:
        running.should_exit = True
        thread.join()
