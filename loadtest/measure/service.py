"""The service under load: where it is, and whether it answers at all."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from loadtest.errors import LoadtestError

DEFAULT_URL = "http://127.0.0.1:8000"
PATH = "/v1/rank"
EVENTS_PATH = "/v1/events"
MODEL_PATH = "/v1/model"
TIMEOUT_S = 10.0
API_KEY = "TABRANK_API_KEY"  # of the environment, where the service wants one


def read_address(url: str) -> tuple[str, int]:
    """The host and port of a service's URL.

    Raises:
        LoadtestError: if it is not the `http://host:port` of a service.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as error:
        raise LoadtestError(f"--url {url}: {error}") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not port
        or parts.query
        or parts.fragment
    ):
        raise LoadtestError(f"--url {url}: must be http://HOST:PORT, such as {DEFAULT_URL}")
    return parts.hostname, port


def probe(url: str, body: bytes) -> None:
    """Send one request, to learn before the run whether there is a service and whether it takes such ones.

    A service that fails (5xx, 429) is left to the run to judge.

    Raises:
        LoadtestError: if nothing answers at `url`, or the request itself is refused.
    """
    status, said = ask(url, PATH, body)
    if 400 <= status < 500 and status != 429:
        raise LoadtestError(
            f"--url {url}: the service refuses the requests of this run: {status} {detail_of(said)}"
        )


def ask(
    url: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """GET a path of the service, or POST `body` to it; the answer's status and body.

    Raises:
        LoadtestError: if nothing answers at `url`.
    """
    host, port = read_address(url)
    kind = http.client.HTTPSConnection if url.startswith("https:") else http.client.HTTPConnection
    connection = kind(host, port, timeout=TIMEOUT_S)
    try:
        whole = urlsplit(url).path.rstrip("/") + path
        method = "GET" if body is None else "POST"
        kind_of_body = {"Content-Type": "application/json"} if body else {}
        connection.request(method, whole, body, {**kind_of_body, **key_header(), **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise LoadtestError(
            f"--url {url}: no service answers there ({error or type(error).__name__}); "
            "start one with `python -m serve up`, or name another with --url"
        ) from None
    finally:
        connection.close()


def key_header() -> dict[str, str]:
    """What a service that knows its callers by keys wants of each request; nothing where the environment has none."""
    key = os.environ.get(API_KEY)
    return {"X-Api-Key": key} if key else {}


def detail_of(said: bytes) -> str:
    """What a problem+json says, or the answer's beginning."""
    try:
        return str(json.loads(said)["detail"])
    except (ValueError, KeyError, TypeError):
        return said[:200].decode("utf-8", "replace").strip()
