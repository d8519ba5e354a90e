"""Tests of the keep-alive connections, against a socket with scripted answers."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from geventhttpclient.response import HTTPParseError

from loadtest.generator import connections as module
from loadtest.generator.connections import Connections, error_kind

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
REQUEST_END = b"\r\n\r\n{}"


class Peer:
    """Listening socket; each connection sends its answers to as many requests, then closes."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.connections: list[list[bytes]] = []
        self.received: list[bytes] = []
        self.hold = threading.Event()
        self.closed = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _serve(self) -> None:
        while self.connections or not self.hold.is_set():
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with sock:
                for answer in self.connections.pop(0):
                    request = b""
                    while not request.endswith(REQUEST_END) and (received := sock.recv(65536)):
                        request += received
                    if not request:
                        break
                    self.received.append(request)
                    if answer == b"hang":
                        self.hold.wait(5)
                    if answer == b"reset":
                        # A close without waiting for what was sent resets the connection.
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        break
                    sock.sendall(answer)
            self.closed.set()


@pytest.fixture
def peer() -> Iterator[Peer]:
    served = Peer()
    yield served
    served.hold.set()
    served.listener.close()


def ask(connections: Connections) -> tuple[int, bytes]:
    return connections.exchange(connections.prepare(b"{}"))[:2]


def test_a_request_is_a_post_of_json_to_the_rank_path(peer):
    peer.connections = [[OK]]
    connections = Connections(peer.url + "/behind/")
    assert ask(connections) == (200, b"hi")
    head, body = peer.received[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /behind/v1/rank HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Content-Type: application/json" in head
    assert b"Content-Length: 2" in head
    assert body == b"{}"
    connections.close()


def test_a_connection_is_used_again(peer):
    peer.connections = [[OK, OK, OK]]
    connections = Connections(peer.url)
    assert [ask(connections)[0] for _ in range(3)] == [200, 200, 200]
    assert len(peer.received) == 3
    connections.close()


def test_a_connection_that_the_service_closed_while_idle_is_replaced(peer):
    peer.connections = [[OK], [OK]]
    connections = Connections(peer.url)
    ask(connections)
    assert peer.closed.wait(5)
    assert ask(connections) == (200, b"hi")
    connections.close()


def test_a_connection_that_the_service_is_about_to_close_is_not_used_again(peer):
    peer.connections = [[b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", b"no"], [OK]]
    connections = Connections(peer.url)
    assert [ask(connections), ask(connections)] == [(200, b"hi"), (200, b"hi")]
    connections.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    ],
)
def test_answers_come_in_chunks_or_until_the_end_of_the_connection(peer, answer):
    peer.connections = [[answer]]
    connections = Connections(peer.url)
    assert ask(connections) == (200, b"hi")
    connections.close()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", "connection closed"),
        (b"reset", "connection closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "connection closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", "connection closed"),
        (b"hello\r\n\r\n", "not HTTP"),
        (b"hang", "timeout"),
    ],
)
def test_a_failed_exchange_is_named_and_its_connection_is_dropped(peer, monkeypatch, answer, kind):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)
    peer.connections = [[answer], [OK]]
    connections = Connections(peer.url)
    with pytest.raises((OSError, HTTPParseError)) as failed:
        ask(connections)
    assert error_kind(failed.value) == kind
    peer.hold.set()
    assert ask(connections) == (200, b"hi")
    connections.close()


def test_a_closed_port_is_a_refused_connection():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError) as failed:
            ask(Connections(f"http://127.0.0.1:{sock.getsockname()[1]}"))
    assert error_kind(failed.value) == "connection refused"
