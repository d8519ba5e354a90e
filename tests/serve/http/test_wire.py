"""The ASGI application behind a real HTTP server."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

import pytest

from tests.support.live_service import Live

HANDSHAKE = (
    b"GET /v1/rank HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture
def url(tmp_path, log_folder):
    with Live(tmp_path, log_folder).listening() as url:
        yield url


def connected(url):
    at = urlsplit(url)
    return socket.create_connection((at.hostname, at.port), timeout=10)


def test_a_websocket_handshake_is_refused(url):
    with connected(url) as connection:
        connection.sendall(HANDSHAKE)
        assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 403")


def test_a_client_that_reads_only_after_sending_sees_the_413(url):
    at = urlsplit(url)
    client = http.client.HTTPConnection(at.hostname, at.port, timeout=20)
    headers = {"Content-Type": "application/json"}
    client.request("POST", "/v1/rank", b" " * 10_000_000, headers)
    answer = client.getresponse()
    assert answer.status == 413
    assert b"body too large" in answer.read()
