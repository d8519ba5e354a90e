"""Endpoint of a service: its address, and the exchange of each call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from serve.client.exchange import Exchange
from serve.client.retries import Retries
from serve.contract.errors import TabrankError
from serve.contract.rankings import RankAnswer, StatedCandidate, new_request_id
from serve.contract.records import ClientRecord, EventsAnswer

RANK = "/v1/rank"
EVENTS = "/v1/events"
# Default timeout of `send`: records are durable within 3 s, and a retry follows a second later.
SEND_TIMEOUT_S = 10.0
# Ids that a header may contain.
IN_HEADER = re.compile(r"[\x21-\x7e]{1,256}")


class _RankAnswer(RankAnswer):
    """Answer that accepts values of `rung` and `degraded` that only a newer service knows."""

    rung: str  # type: ignore[assignment]
    degraded: list[str]  # type: ignore[assignment]


_ranking: msgspec.json.Decoder[RankAnswer] = msgspec.json.Decoder(_RankAnswer)
_events = msgspec.json.Decoder(EventsAnswer)


class Endpoint:
    """Service at `url`; its methods do no I/O."""

    def __init__(self, url: str, timeout_s: float, api_key: str | None) -> None:
        self.url = _address(url)
        self.timeout_s = _timeout(timeout_s)
        self.retries = Retries()
        self._headers = {"Content-Type": "application/json", "User-Agent": "tabrank-client"}
        if api_key is not None:
            self._headers["X-Api-Key"] = _key(api_key)

    def rank(
        self,
        candidates: Sequence[str | StatedCandidate | Mapping[str, Any]],
        context: Mapping[str, Any] | None,
        request_id: str | None,
        timeout_s: float | None,
        more: Mapping[str, Any],
    ) -> Exchange[RankAnswer]:
        """Return the exchange of a ranking; `more` are the other keys of the body."""
        id_ = new_request_id() if request_id is None else request_id
        # Both attempts have the same id, so the exposure counts once.
        body = {"candidates": list(candidates), "context": dict(context or {}), "request_id": id_, **more}
        # The header names the request to proxies and services that refuse it before they read it.
        named = {"X-Request-Id": id_} if IN_HEADER.fullmatch(id_) else {}
        headers = {**self._headers, **named}
        timeout_s = self.timeout_s if timeout_s is None else _timeout(timeout_s)
        content = msgspec.json.encode(body)
        return Exchange(self.url, RANK, content, headers, timeout_s, _ranking, self.retries, id_, True)

    def send(
        self, records: Sequence[ClientRecord | Mapping[str, Any]], timeout_s: float | None
    ) -> Exchange[EventsAnswer]:
        """Return the exchange that sends records."""
        timeout_s = SEND_TIMEOUT_S if timeout_s is None else _timeout(timeout_s)
        body = msgspec.json.encode({"records": list(records)})
        return Exchange(self.url, EVENTS, body, self._headers, timeout_s, _events, self.retries)


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    # The port is not a number.
    except ValueError:
        is_one = False
    if not is_one or parts.query or parts.fragment:
        raise TabrankError(f"url {url!r} is not a service address; use http://HOST:PORT or https://HOST:PORT")
    return url.rstrip("/")


def _timeout(timeout_s: float) -> float:
    if not 0.0 < timeout_s < float("inf"):
        raise TabrankError(f"timeout_s is {timeout_s}; use a number of seconds above 0")
    return timeout_s


def _key(api_key: str) -> str:
    if not IN_HEADER.fullmatch(api_key):
        raise TabrankError("api_key must be 1 to 256 printable ASCII characters, no space")
    return api_key
