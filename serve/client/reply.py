"""Reply to one attempt, and its conversion into an answer or a client error."""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from http.client import responses
from math import inf
from typing import NamedTuple, TypeVar

import msgspec

from serve.client.errors import Refused, TimedOut, Unreachable
from serve.contract.rankings import Problem

T = TypeVar("T")
PROBLEM = "application/problem+json"
# Without a `problem+json` body these statuses come from a proxy that reached no service. HAProxy
# answers a bare 500 if a replica died with the request, and 404 before its routes are loaded.
PROXY_STATUSES = (404, 500, 502, 504)
# Characters of a foreign answer that a message quotes.
MAX_QUOTED = 200


class Lost(NamedTuple):
    """Attempt without an answer."""

    reason: str
    timed_out: bool = False
    # A failed connection to `Retries`, and no `Retry-After`.
    status: None = None
    retry_after_s: None = None


class Reply(NamedTuple):
    """HTTP answer; `kind` is its content type."""

    code: int
    body: bytes
    kind: str
    retry_after: str | None = None

    @property
    def status(self) -> int | None:
        """Status for `Retries`; None, a failed connection, if a proxy answered."""
        return None if self.code in PROXY_STATUSES and not self.is_problem else self.code

    @property
    def retry_after_s(self) -> float | None:
        """Seconds of `Retry-After`; infinity for a date, which tabrank never sends."""
        if self.retry_after is None:
            return None
        return float(self.retry_after) if self.retry_after.isdecimal() else inf

    @property
    def is_problem(self) -> bool:
        """True if the body is `problem+json`, as every error of the service is."""
        return self.kind.partition(";")[0].strip().lower() == PROBLEM


def read(
    reply: Reply | Lost, decoder: msgspec.json.Decoder[T], at: str, timeout_s: float, request_id: str | None
) -> T:
    """Decode the answer in a reply from the address `at`.

    Raises:
        ClientError: the reply holds no answer.
    """
    if isinstance(reply, Lost):
        if reply.timed_out:
            raise TimedOut(f"{at} did not answer within {timeout_s:g} s", request_id)
        raise Unreachable(f"{at} cannot be reached: {reply.reason}", request_id)
    if reply.code == HTTPStatus.OK:
        try:
            return decoder.decode(reply.body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            detail = f"{at} does not answer as a tabrank service: {error}; is the address right?"
            raise Unreachable(detail, request_id) from None
    text = reply.body[:MAX_QUOTED].decode("utf-8", "replace").strip() or "empty answer"
    if reply.status is None:
        raise Unreachable(f"a proxy before {at} answered {reply.code} in its place: {text}", request_id)
    problem = Problem(responses.get(reply.code, "unknown status").lower(), reply.code, text)
    # The body may not be a valid problem document; then the error quotes it.
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        problem = msgspec.json.decode(reply.body, type=Problem) if reply.is_problem else problem
    raise Refused(
        reply.code,
        problem.title,
        problem.detail,
        pointer=problem.pointer,
        request_id=problem.request_id or request_id,
        retry_after_s=reply.retry_after_s,
    )
