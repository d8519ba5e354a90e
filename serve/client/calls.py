"""Calls of both clients: their arguments, and the exchange that each call needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from serve.client.exchange import Exchange
from serve.client.retries import Retries
from serve.contract.errors import TabrankError
from serve.contract.rankings import Explain, RankAnswer, StatedCandidate, new_request_id
from serve.contract.records import ClientRecord, EventsAnswer

# Results of `rank` and `send`: the answers, or coroutines of them.
Ranking = TypeVar("Ranking")
Sent = TypeVar("Sent")
Rankable = str | StatedCandidate | Mapping[str, Any]
Traffic = Literal["live", "test"]
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


class Calls(Generic[Ranking, Sent]):
    """Calls of the service at `url`; a subclass makes the exchanges."""

    def __init__(self, url: str, *, timeout_s: float = 0.25, api_key: str | None = None) -> None:
        self._url = _address(url)
        self._timeout_s = _timeout(timeout_s)
        self._retries = Retries()
        self._headers = {"Content-Type": "application/json", "User-Agent": "tabrank-client"}
        if api_key is not None:
            if not IN_HEADER.fullmatch(api_key):
                raise TabrankError("api_key must be 1 to 256 printable ASCII characters, no space")
            self._headers["X-Api-Key"] = api_key
        self._open()

    def rank(
        self,
        viewer: str | None,
        candidates: Sequence[Rankable],
        *,
        limit: int | None = None,
        pins: Mapping[str, int] | None = None,
        context: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        explain: Explain = False,
        traffic: Traffic = "live",
        now_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> Ranking:
        """Rank `candidates` for `viewer`, and return the answer; its `ranking` has the order.

        Each candidate in the answer counts as an impression, unless the surface has `impression`
        events. Test traffic counts none.

        Args:
            viewer: Whom to rank for; None is an anonymous viewer.
            candidates: Ids, or objects such as `{"candidate": "a", "fields": {"distance": 0.4}}`.
            limit: How many candidates the viewer sees; None returns all.
            pins: Positions, from 1, of candidates that come there whatever they are worth.
            context: Fields of the request that the surface declares.
            request_id: An id of your own, which events may name; None makes one.
            explain: "reasons" asks for reasons, and True for the features' values too.
            traffic: "test" for a ranking that nobody sees.
            now_ms: Time of the ranking; a service with `clock: event` needs it, others refuse it.
            timeout_s: The time for this ranking; None takes the client's.

        Raises:
            ClientError: `Refused`, `TimedOut` or `Unreachable`.
        """
        id_ = new_request_id() if request_id is None else request_id
        body = {
            "viewer": viewer,
            "candidates": list(candidates),
            "limit": limit,
            "pins": dict(pins or {}),
            "context": dict(context or {}),
            # Both attempts have the same id, so the exposure counts once.
            "request_id": id_,
            "explain": explain,
            "traffic": traffic,
            **({} if now_ms is None else {"now_ms": now_ms}),
        }
        # The header names the request to proxies and services that refuse it before they read it.
        headers = {**self._headers, **({"X-Request-Id": id_} if IN_HEADER.fullmatch(id_) else {})}
        timeout_s = self._timeout_s if timeout_s is None else _timeout(timeout_s)
        content = msgspec.json.encode(body)
        exchange = Exchange(self._url, RANK, content, headers, timeout_s, _ranking, self._retries, id_, True)
        ranking: Ranking = self._run(exchange)
        return ranking

    def send(
        self, records: Sequence[ClientRecord | Mapping[str, Any]], *, timeout_s: float | None = None
    ) -> Sent:
        """Send records, and return which were rejected once the others are durable.

        The default timeout is 10 s. An event that was sent before is counted as a duplicate.

        Raises:
            ClientError: `Refused`, `TimedOut` or `Unreachable`.
        """
        timeout_s = SEND_TIMEOUT_S if timeout_s is None else _timeout(timeout_s)
        body = msgspec.json.encode({"records": list(records)})
        exchange = Exchange(self._url, EVENTS, body, self._headers, timeout_s, _events, self._retries)
        sent: Sent = self._run(exchange)
        return sent

    def _open(self) -> None:
        """Open the connections to `self._url`."""
        raise NotImplementedError

    def _run(self, exchange: Exchange[Any]) -> Any:
        """Make an exchange: return its answer, or a coroutine of it."""
        raise NotImplementedError


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
