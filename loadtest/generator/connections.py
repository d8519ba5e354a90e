"""Keep-alive connections to the service, over gevent."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

import gevent.socket
from geventhttpclient.response import HTTPParseError, HTTPResponse

from loadtest.measure.service import key_header, read_address

TIMEOUT_S = 10.0
RECEIVE_BYTES = 16384


class Exchanges(Protocol):
    """Who sends a request, and has its answer's status and body."""

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Raises OSError or HTTPParseError where there is no answer."""


class Connections:
    """POSTs prepared requests to one URL; a connection is used again, the one used last first.

    A request is bytes made once, its answer is read by FastHttpUser's own parser. Measured for 55 candidates,
    CPU a request: 27 µs; with `FastHttpUser.client.post` 130 to 170 µs, which at 900 requests a second is a
    tenth of a core more, and the service needs that core when it shares the machine.
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
        # Resolved once: gevent resolves in a thread, and a burst of new connections would queue there.
        self._addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._idle: list[Any] = []

    def prepare(self, body: bytes) -> bytes:
        """The whole request that carries `body`."""
        return self._head + b"%d\r\n\r\n" % len(body) + body

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send a prepared request; its answer's status and body.

        Raises:
            OSError: if it cannot be sent, or is not answered in time (TimeoutError).
            HTTPParseError: if what comes back is not HTTP.
        """
        return self.answered(request)[:2]

    def answered(self, request: bytes) -> tuple[int, bytes, str, str | None]:
        """As `exchange`, with the answer's `Content-Type` and `Retry-After`: what a client's retry goes by."""
        sock = self._idle_connection() or self._connect()
        try:
            sock.sendall(request)
            answer = _Answer("POST")
            while not answer.message_complete:
                received = sock.recv(RECEIVE_BYTES)
                if received:
                    answer.feed(received)
                else:
                    _end(answer)
        except BaseException:
            sock.close()
            raise
        if answer.should_close():
            sock.close()
        else:
            self._idle.append(sock)
        kind, retry_after = answer.get("content-type", ""), answer.get("retry-after")
        asked = None if retry_after is None else str(retry_after)
        return answer.status_code, bytes(answer.body), str(kind), asked

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _idle_connection(self) -> Any:
        while self._idle:
            sock = self._idle.pop()
            if _is_quiet(sock, self._timeout_s):
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


class _Answer(HTTPResponse):
    """The parser's answer, its body within reach."""

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.body = bytearray()

    def _on_body(self, buf: bytearray) -> None:
        self.body += buf


def _end(answer: _Answer) -> None:
    """Tell an answer that the service closed the connection, which may be how it ends."""
    with suppress(HTTPParseError):  # said below
        answer.feed(b"")
    if not answer.message_complete:
        raise ConnectionResetError("closed before the answer was complete")


def _is_quiet(sock: Any, timeout_s: float) -> bool:
    """Whether an idle connection is still open: the service has neither closed it nor sent anything."""
    if isinstance(sock, ssl.SSLSocket):
        return True  # TLS cannot be peeked into
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
    """A failed exchange in two words."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError):
        return "connection closed"
    if isinstance(error, HTTPParseError):
        return "not HTTP"
    return error.strerror or type(error).__name__
