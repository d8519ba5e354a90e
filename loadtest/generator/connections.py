"""Keep-alive HTTP connections to the service on gevent, and the retry of the shipped client."""

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

# Most bytes to receive at once. The answer to a ranking of 55 candidates has 4 kB.
RECEIVE_BYTES = 16384
Exchange = Callable[[bytes], Reply]
# Statuses of good answers. 207 answers a post of records of which some were rejected.
OK = (200, 207)


class Connections:
    """Keep-alive connections to one URL. The one that was used last is used again first.

    Requests are byte strings that are built once, and the parser of Locust's `FastHttpUser` reads
    the answers. A request with 55 candidates takes 27 µs of CPU this way, as measured, and 130 to
    170 µs with `FastHttpUser.client.post`. At 900 requests per second the difference is a tenth of
    a core, which the service needs if both share a machine.
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
        # Resolve the name once. gevent resolves names in a thread, in which a burst of new
        # connections would queue.
        self._addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._idle: list[Any] = []

    def prepare(self, body: bytes) -> bytes:
        """Return the whole request that carries `body`."""
        return self._head + b"%d\r\n\r\n" % len(body) + body

    def exchange(self, request: bytes) -> Reply:
        """Send a prepared request and return its answer.

        Raises:
            OSError: if it cannot be sent, or (TimeoutError) if no answer comes in time.
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
    """Answer that is read from a socket; the end of the connection may be the end of the answer."""

    def feed(self, data: str | bytes) -> None:
        """Parse what was received; empty `data` means that the service closed the connection."""
        if data:
            super().feed(data)
            return
        with suppress(HTTPParseError):
            super().feed(data)
        if not self.message_complete:
            raise ConnectionResetError("closed before the answer was complete")


def _is_idle(sock: Any, timeout_s: float) -> bool:
    """Return whether an idle connection is usable: the service neither closed it nor sent data."""
    if isinstance(sock, ssl.SSLSocket):
        # TLS does not allow to look at data without receiving it.
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
    """Return a short name for the error of a failed exchange, such as `timeout`."""
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
    """First try of a request that failed.

    `Retrying` sets `at_s` by `perf_counter()`; an `OfferResult` has it in seconds of the load.
    """

    at_s: float
    kind: str


@dataclass(frozen=True)
class Retrying:
    """Transport that retries a failed request once, by the rules of the shipped client.

    Each failed first try is passed to `on_failed`. `timeout_s` covers both tries together, as in
    the client.
    """

    connections: Connections
    timeout_s: float
    on_failed: Callable[[Failure], None]
    policy: Retries = field(default_factory=Retries)

    def exchange(self, request: bytes) -> Reply:
        """Send a request, and return the answer of the last try.

        Raises:
            OSError, HTTPParseError: if the last try has no answer.
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
