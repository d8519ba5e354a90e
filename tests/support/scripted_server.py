"""HTTP server that follows a script of one entry per request, and records the requests."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from contextlib import contextmanager

# Entries of a script: close the connection without an answer, or never answer.
DROP, HANG = "drop", "hang"


def answer(status, body, kind="application/json", **headers):
    """Return an HTTP answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": kind, "content-length": len(content), **headers}
    lines = [
        f"HTTP/1.1 {status} Said",
        *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


def problem(status, title="busy", **more):
    """Return a problem answer as the service sends it; `retry_after` becomes a header."""
    headers = {"retry_after": more.pop("retry_after")} if "retry_after" in more else {}
    body = {"title": title, "status": status, "detail": "so it is", **more}
    return answer(status, body, "application/problem+json", **headers)


class Slowly(bytes):
    """Answer whose body is sent byte by byte, 10 ms apart."""


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked = list(script), []
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while line := self.rfile.readline():
            headers = {}
            while (header := self.rfile.readline()) != b"\r\n":
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = json.loads(self.rfile.read(int(headers["content-length"])))
            self.server.asked.append((line.decode().split()[1], headers, body))
            step = self.server.script.pop(0)
            if step == HANG:
                self.server.ended.wait(5)
            if not isinstance(step, bytes):
                return
            if isinstance(step, Slowly):
                self._write_slowly(step)
            else:
                self.wfile.write(step)

    def _write_slowly(self, step):
        head, body = step.split(b"\r\n\r\n", 1)
        self.wfile.write(head + b"\r\n\r\n")
        # The client may have closed the connection.
        with contextlib.suppress(OSError):
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.server.ended.wait(0.01)


@contextmanager
def scripted(*script):
    """Run a server that follows the script until the block ends."""
    with Server(script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()
