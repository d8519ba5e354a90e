"""Buckets for tests: one in memory that fails in the ways of networks, and moto's S3 server."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

START_S = 60.0
BUCKET = "bucket"
# Faults that refuse a request before the server sees it. `FaultyBucket` explains all faults.
REFUSED = ("closed", "503", "403")
Fault = Callable[[str, str], str | None]
# Status, headers and content.
Answer = tuple[int, list[tuple[str, str]], bytes]


class S3Server:
    """Process of moto's server, on a free port of 127.0.0.1, with one bucket."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        quiet: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
        self._process = subprocess.Popen(command, **quiet)

    def wait(self) -> None:
        """Wait until it answers, and create the bucket."""
        end = time.monotonic() + START_S
        while True:
            try:
                assert self.request("PUT", f"/{BUCKET}")[0] == 200
                return
            except OSError:
                assert self._process.poll() is None, "moto's server did not start"
                assert time.monotonic() < end
                time.sleep(0.05)

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Answer a request with its status, headers and content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        scope = "20260101/us-east-1/s3/aws4_request"
        own = {"Authorization": f"AWS4-HMAC-SHA256 Credential=tests/{scope}"}
        connection.request(method, path, body, {**own, **(headers or {})})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.getheaders(), content

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


class MemoryBucket:
    """The part of S3's protocol that obstore uses, with one bucket whose objects are in memory.

    A request takes a quarter of the time that it takes moto's server, and is atomic.
    `tests/serve/storage/test_memory_bucket.py` compares the two.
    """

    def __init__(self) -> None:
        # By key: content, metadata, and when it was written.
        self._objects: dict[str, tuple[bytes, dict[str, str], datetime]] = {}
        self._lock = threading.Lock()

    def request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Answer a request with its status, headers and content."""
        parts, headers = urlsplit(path), {name.lower(): value for name, value in headers.items()}
        bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
        if bucket != BUCKET:
            return _refusal(404, "NoSuchBucket", "The specified bucket does not exist")
        with self._lock:
            if method == "POST":
                return self._delete(body)
            if not key:
                return self._list(parse_qs(parts.query))
            if method == "PUT":
                return self._put(key, body, headers)
            return self._get(key, headers)

    def _get(self, key: str, headers: Mapping[str, str]) -> Answer:
        if key not in self._objects:
            return _refusal(404, "NoSuchKey", "The specified key does not exist.")
        content, metadata, at = self._objects[key]
        described = [("ETag", _tag(content)), ("Last-Modified", format_datetime(at, usegmt=True))]
        described += metadata.items()
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", ""))
        if wanted is None:
            return 200, described, content
        end = len(content) - 1
        if wanted[1]:
            first, last = int(wanted[1]), min(int(wanted[2] or end), end)
        else:
            first, last = max(len(content) - int(wanted[2]), 0), end
        described.append(("Content-Range", f"bytes {first}-{last}/{len(content)}"))
        return 206, described, content[first : last + 1]

    def _put(self, key: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        held = self._objects.get(key)
        wanted, is_new = headers.get("if-match"), headers.get("if-none-match") == "*"
        if wanted is not None and held is None:
            return _refusal(404, "NoSuchKey", "The specified key does not exist.")
        if (held and is_new) or (held and wanted not in (None, _tag(held[0]))):
            return _refusal(412, "PreconditionFailed", "A pre-condition did not hold.")
        metadata = {name: value for name, value in headers.items() if name.startswith("x-amz-meta-")}
        self._objects[key] = body, metadata, datetime.now(UTC)
        return 200, [("ETag", _tag(body))], b""

    def _delete(self, body: bytes) -> Answer:
        keys = [unescape(key) for key in re.findall("<Key>(.*?)</Key>", body.decode())]
        for key in keys:
            self._objects.pop(key, None)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return 200, [], f"<DeleteResult>{deleted}</DeleteResult>".encode()

    def _list(self, query: Mapping[str, list[str]]) -> Answer:
        prefix, after = (query.get(name, [""])[0] for name in ("prefix", "continuation-token"))
        most = int(query.get("max-keys", ["1000"])[0])
        found = sorted(key for key in self._objects if key.startswith(prefix) and key > after)
        rest, xml = found[most:], ""
        for key in found[:most]:
            content, _, at = self._objects[key]
            when = f"{at:%Y-%m-%dT%H:%M:%S}.000Z"
            xml += f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified>"
            xml += f"<ETag>{escape(_tag(content))}</ETag><Size>{len(content)}</Size></Contents>"
        if rest:
            token = escape(found[most - 1])
            xml += f"<NextContinuationToken>{token}</NextContinuationToken>"
        xml += f"<IsTruncated>{str(bool(rest)).lower()}</IsTruncated>"
        return 200, [], f"<ListBucketResult>{xml}</ListBucketResult>".encode()


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _refusal(status: int, code: str, message: str) -> Answer:
    return status, [], f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


class FaultyBucket:
    """Way to a bucket that can let requests fail.

    `fault` takes the method and the path of a request. It returns None, or what happens to it:

    - `closed`: the connection ends.
    - `503` and `403`: the request is refused with this status.
    - `slow`: the request waits for `slow_s`.
    - `cut reply`: only half of the reply's body is sent.
    - `cut upload`: only half of the request's body is taken.
    - `lost reply`: the server carries out the request, and the connection ends without a reply.
    - `lost 503`: the server carries out the request, and the reply is an error.
    - `stale`: the reply is the one that `remembering` kept.

    """

    def __init__(self, inner: MemoryBucket) -> None:
        self.inner = inner
        self.fault: Fault = lambda method, path: None
        self.slow_s = 2.0
        # Method and path of each request, and what happened to it.
        self.seen: list[tuple[str, str, str | None]] = []
        self.lists: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        self._is_remembering = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @contextmanager
    def failing(self, what: str, method: str = "", path: str = "", times: int = 1_000_000) -> Iterator[None]:
        """Let the first `times` requests of a method fail, if the path matches a pattern."""
        left = [times]

        def fault(its: str, at: str) -> str | None:
            if (method and its != method) or not re.search(path, at) or not left[0]:
                return None
            left[0] -= 1
            return what

        self.fault = fault
        try:
            yield
        finally:
            self.fault = lambda method, path: None

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Keep the first reply to each listing within the block, for the fault `stale`."""
        self.lists.clear()
        self._is_remembering = True
        try:
            yield
        finally:
            self._is_remembering = False

    def num_failed(self, what: str) -> int:
        """Return how many requests failed in this way."""
        return sum(happened == what for _, _, happened in self.seen)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        method, path = handler.command, handler.path
        what = self.fault(method, path)
        self.seen.append((method, path, what))
        size = int(handler.headers.get("Content-Length") or 0)
        if what == "closed":
            return self._end(handler)
        if what == "cut upload":
            handler.rfile.read(size // 2)
            return self._end(handler)
        body = handler.rfile.read(size)
        if what in ("503", "403"):
            return self._reply(handler, int(what), [], _error(what))
        if what == "slow":
            time.sleep(self.slow_s)
        status, headers, content = self.inner.request(method, path, body, dict(handler.headers))
        if "list-type" in path and self._is_remembering:
            self.lists.setdefault(path, (status, headers, content))
        if what == "lost reply":
            return self._end(handler)
        if what == "lost 503":
            return self._reply(handler, 503, [], _error("503"))
        if what == "stale":
            status, headers, content = self.lists.get(path, (status, headers, content))
        return self._reply(handler, status, headers, content, is_cut=what == "cut reply")

    @staticmethod
    def _reply(
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        *,
        is_cut: bool = False,
    ) -> None:
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content[: len(content) // 2] if is_cut else content)
        if is_cut:
            FaultyBucket._end(handler)

    @staticmethod
    def _end(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        with suppress(OSError):
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)


def _error(code: str) -> bytes:
    message = {"503": "Please reduce your request rate.", "403": "Access Denied"}[code]
    name = {"503": "SlowDown", "403": "AccessDenied"}[code]
    return f"<Error><Code>{name}</Code><Message>{message}</Message></Error>".encode()


def _handler_of(proxy: FaultyBucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def handle_one_request(self) -> None:
            # A client may close the connection at any time.
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()

        def _answer(self) -> None:
            try:
                proxy.answer(self)
            except (OSError, http.client.HTTPException):
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._answer)
    return Handler


def environment(url: str) -> dict[str, str]:
    """Return the environment variables with which a process finds a bucket at this address."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret-of-anybody",
        "AWS_REGION": "us-east-1",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
    }


def named(folder: str) -> str:
    """Return the address of a new folder in the bucket."""
    return f"s3://{BUCKET}/{folder}-{os.urandom(6).hex()}"
