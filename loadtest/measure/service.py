"""Reach the service under load: its URL, single requests, and the outcomes of its answers."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from contextlib import closing
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from loadtest.errors import LoadtestError
from serve.contract.commands import key_header
from serve.contract.records import EventsAnswer, Rejected

DEFAULT_URL = "http://127.0.0.1:8000"
PATH = "/v1/rank"
EVENTS_PATH = "/v1/events"
MODEL_PATH = "/v1/model"
# A request without an answer within this time counts as failed. It is far above any SLO, so that a
# slow service shows as latency, and not as errors.
TIMEOUT_S = 10.0


def read_address(url: str) -> tuple[str, int]:
    """Return the host and the port in a service's URL.

    Raises:
        LoadtestError: if the URL is not of the form `http://HOST:PORT` or `https://HOST:PORT`, with
            or without a path.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as error:
        raise LoadtestError(f"--url {url}: {error}") from None
    known = parts.scheme in ("http", "https")
    if not (known and parts.hostname and port) or parts.query or parts.fragment:
        raise LoadtestError(f"--url {url}: it must be of the form http://HOST:PORT, such as {DEFAULT_URL}")
    return parts.hostname, port


def probe(url: str, body: bytes) -> None:
    """Send one request before the run, to check that a service exists and accepts the requests.

    An answer of 5xx or 429 passes this check, because the run itself judges a service that fails.

    Raises:
        LoadtestError: if nothing answers at `url`, or the service rejects the request.
    """
    status, answer = ask(url, PATH, body)
    if 400 <= status < 500 and status != 429:
        raise LoadtestError(f"--url {url}: it rejects the requests of this run: {status} {detail_of(answer)}")


def ask(
    url: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Send a GET to a path of the service, or a POST if there is a `body`.

    Returns the status and the body of the answer.

    Raises:
        LoadtestError: if nothing answers at `url`.
    """
    host, port = read_address(url)
    kind = http.client.HTTPSConnection if url.startswith("https:") else http.client.HTTPConnection
    whole = urlsplit(url).path.rstrip("/") + path
    method = "GET" if body is None else "POST"
    kind_of_body = {"Content-Type": "application/json"} if body else {}
    try:
        with closing(kind(host, port, timeout=TIMEOUT_S)) as connection:
            connection.request(method, whole, body, {**kind_of_body, **key_header(), **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise LoadtestError(
            f"--url {url}: no service answers there ({error or type(error).__name__}); "
            "start one with `python -m serve up`, or name another with --url"
        ) from None


def post_records(url: str, body: bytes, hint: str = "") -> list[Rejected]:
    """Post records, and return those that the service rejects.

    Raises:
        LoadtestError: if the service does not accept the post as a whole; `hint` ends its message.
    """
    status, answer = ask(url, EVENTS_PATH, body)
    if status not in (200, 207):
        why = f"{status} {detail_of(answer)}"
        raise LoadtestError(f"--url {url}: the service does not accept events: {why}{hint}")
    return _decode_acknowledgement(answer).rejected


def detail_of(body: bytes) -> str:
    """Return the detail of a problem+json body, or the beginning of another body."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace").strip()


class Outcome(NamedTuple):
    """How a request ended.

    Attributes:
        name: the rung of the answer, which says how complete it is, or the kind of error.
        ok: whether there was a valid answer.
        full: whether the rung was `full` and a model, not a heuristic, made the ranking.
    """

    name: str
    ok: bool
    full: bool = False


class _Place(msgspec.Struct, gc=False):
    score: float | None


class _Answer(msgspec.Struct, gc=False):
    """The three fields of an answer that a verdict needs.

    To decode them from an answer with 55 candidates (4.2 kB) takes 5.7 µs of CPU, and to count the
    scores 1.7 µs. At 900 answers per second this is 0.7 % of a core, so every answer is decoded.
    """

    rung: str
    model: str | None
    ranking: list[_Place]


_decode = msgspec.json.Decoder(_Answer).decode
_decode_acknowledgement = msgspec.json.Decoder(EventsAnswer).decode


def read_answer(status: int, body: bytes, num_candidates: int) -> tuple[Outcome, int]:
    """Return the outcome of an answer, and how many of its candidates a model scored.

    An answer is an error if it is not as documented, or if it ranks another number of candidates
    than the request named.
    """
    if status != 200:
        return Outcome(f"HTTP {status}", ok=False), 0
    try:
        answer = _decode(body)
    except msgspec.MsgspecError:
        return Outcome("unreadable answer", ok=False), 0
    if len(answer.ranking) != num_candidates:
        return Outcome("wrong number of candidates", ok=False), 0
    full = answer.rung == "full" and answer.model is not None
    scored = sum(place.score is not None for place in answer.ranking) if full else 0
    return Outcome(answer.rung, ok=True, full=full), scored


def read_acknowledgement(status: int, body: bytes, num_records: int) -> tuple[Outcome, int]:
    """Return the outcome of a post of records with new ids, and how many were accepted.

    The outcome is an error unless all `num_records` records were accepted.
    """
    if status not in (200, 207):
        return Outcome(f"HTTP {status}", ok=False), 0
    try:
        accepted = _decode_acknowledgement(body).accepted
    except msgspec.MsgspecError:
        return Outcome("unreadable answer", ok=False), 0
    if accepted != num_records:
        return Outcome("records refused", ok=False), accepted
    return Outcome("accepted", ok=True), accepted


class Ended(NamedTuple):
    """Request that has ended.

    It was due at `at_s` seconds of the run and sent `late_ms` after that. `latency_ms` counts from
    the due time to the end. `scored` is the number of candidates that a model scored, and
    `num_bytes` the length of the answer's body.
    """

    at_s: float
    late_ms: float
    latency_ms: float
    outcome: Outcome
    scored: int
    num_bytes: int
