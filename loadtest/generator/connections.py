"""Keep-alive HTTP connections to the service, on gevent, and the shipped client's one retry."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import gevent
import gevent.socket
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError, HTTPSocketResponse

from loadtest.measure.service import TIMEOUT_S, read_address
from serve.client.reply import Lost, Reply
from serve.client.retries import Retries
from serve.contract.commands import key_header

RECEIVE_BYTES = 16384
Exchange = Callable[[bytes], Reply]
# Answers of rankings, and of records with and without rejected ones.
OK = (200, 207)


class Connections:
    """Keep-alive connections to one URL, used again in last-in, first-out order.

    A request is a byte string built once. FastHttpUser's own parser reads the answer. CPU per
    request, measured with 55 candidates: 27 µs; with `FastHttpUser.client.post` 130 to 170 µs. At
    900 requests per second that is a tenth of a core more, and the service needs that core on a
    shared machine.
    """

    def __init__(self, url: str, path: str = "/v1/rank", *, timeout_s: float | None = None) -> None:
        self._timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
        parts = urlsplit(url)
        host, port = read_address(url)
        self._host = host
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        key = "".join(f"{name}: {value}\r\n" for name, value in key_header().items())
        self._head = (
            f"POST {parts.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
            "User-Agent: tabrank-loadtest\r\nAccept: application/json\r\n"
            f"Content-Type: application/json\r\n{key}Content-Length: "
        ).encode("ascii")
        # Resolve once: gevent resolves in a thread, where a burst of new connections would queue.
        self._addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._idle: list[Any] = []

    def prepare(self, body: bytes) -> bytes:
        """Return the whole request that carries `body`."""
        return self._head + b"%d\r\n\r\n" % len(body) + body

    def exchange(self, request: bytes) -> Reply:
        """Send a prepared request; return its answer.

        Raises:
            OSError: if it cannot be sent, or is not answered in time (TimeoutError).
            HTTPParseError: if the answer is not HTTP.
        """
        sock = self._idle_connection() or self._connect()
        try:
            sock.sendall(request)
            answer = _Answer(sock, RECEIVE_BYTES, "POST")
            body = answer.read()
        except BaseException:
            sock.close()
            raise
        if not answer.should_close():
            self._idle.append(sock)
        kind, retry_after = answer.get("content-type", ""), answer.get("retry-after")
        delay = None if retry_after is None else str(retry_after)
        return Reply(answer.status_code, body, str(kind), delay)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _idle_connection(self) -> Any:
        while self._idle:
            sock = self._idle.pop()
            if _is_idle(sock, self._timeout_s):
                return sock
            sock.close()
        return None

    def _connect(self) -> Any:
        failure: OSError | None = None
        for family, kind, protocol, _, address in self._addresses:
            sock = gevent.socket.socket(family, kind, protocol)
            try:
                sock.settimeout(self._timeout_s)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.connect(address)
                return self._tls.wrap_socket(sock, server_hostname=self._host) if self._tls else sock
            except OSError as error:
                sock.close()
                failure = error
        raise failure or OSError("no address")


class _Answer(HTTPSocketResponse):
    """Answer on a socket, which the service may close; a close may end a valid answer."""

    def feed(self, data: str | bytes) -> None:
        """Parse what was received; nothing tells that the connection was closed."""
        if data:
            super().feed(data)
            return
        with suppress(HTTPParseError):
            super().feed(data)
        if not self.message_complete:
            raise ConnectionResetError("closed before the answer was complete")


def _is_idle(sock: Any, timeout_s: float) -> bool:
    """Return whether an idle connection is open: the service neither closed it nor sent data."""
    if isinstance(sock, ssl.SSLSocket):
        # It is not possible to peek into TLS.
        return True
    sock.settimeout(0.0)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        sock.settimeout(timeout_s)
        return True
    except OSError:
        return False
    return False


def error_kind(error: OSError | HTTPParseError) -> str:
    """Return a short name for a failed exchange."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError | HTTPConnectionClosed):
        return "connection closed"
    if isinstance(error, HTTPParseError):
        return "not HTTP"
    return error.strerror or type(error).__name__


class Failure(NamedTuple):
    """First try that failed, with its time: of `perf_counter()`, or in seconds of the load."""

    at_s: float
    kind: str


@dataclass(frozen=True)
class Retrying:
    """Transport with the client's one retry; it passes each failed first try to `on_failed`.

    `timeout_s` covers both tries together, as in the client.
    """

    connections: Connections
    timeout_s: float
    on_failed: Callable[[Failure], None]
    policy: Retries = field(default_factory=Retries)

    def exchange(self, request: bytes) -> Reply:
        """Return the answer of the last try.

        Raises:
            OSError, HTTPParseError: of the last try.
        """
        until = perf_counter() + self.timeout_s
        self.policy.sent()
        error: OSError | HTTPParseError | None = None
        reply: Reply | Lost
        try:
            reply = self.connections.exchange(request)
            if reply.code in OK:
                return reply
            kind = f"HTTP {reply.code}"
        except (OSError, HTTPParseError) as raised:
            error, reply, kind = raised, Lost(str(raised)), error_kind(raised)
        now = perf_counter()
        self.on_failed(Failure(now, kind))
        delay_s = self.policy.delay_s(reply.status, until - now, reply.retry_after_s)
        if delay_s is not None:
            gevent.sleep(delay_s)
            answer = self.connections.exchange(request)
            if perf_counter() > until:
                raise TimeoutError
            return answer
        if isinstance(reply, Reply):
            return reply
        assert error is not None
        raise error
