"""What came back of one try, and what it means: an answer, a refusal, or nothing of the service at all."""

from __future__ import annotations

from http import HTTPStatus
from http.client import responses
from math import inf
from typing import NamedTuple, TypeVar

import msgspec

from serve.client.errors import ClientError, Refused, TimedOut, Unreachable
from serve.contract.rankings import Problem

T = TypeVar("T")
PROBLEM = "application/problem+json"
NOT_OURS = (404, 500, 502, 504)
"""Without a `problem+json` the service did not say these, but something before it that found no service to ask:
HAProxy answers a bare 500 for a replica that died with the request, and 404 before it knows its routes."""
SHOWN = 200  # characters of a stranger's answer


class Lost(NamedTuple):
    """A try without an answer."""

    reason: str
    timed_out: bool = False

    @property
    def status(self) -> None:
        """None: a connection that failed, for `Retries`."""
        return

    @property
    def retry_after_s(self) -> None:
        """Nobody asked."""
        return


class Reply(NamedTuple):
    """An HTTP answer."""

    code: int
    body: bytes
    kind: str  # its content type
    retry_after: str | None = None

    @property
    def status(self) -> int | None:
        """The status for `Retries`: None, a failed connection, where the service did not answer."""
        return None if self.code in NOT_OURS and not self.is_problem else self.code

    @property
    def retry_after_s(self) -> float | None:
        """What `Retry-After` asks for; a date, which no tabrank sends, is beyond every timeout."""
        if self.retry_after is None:
            return None
        return float(self.retry_after) if self.retry_after.isdecimal() else inf

    @property
    def is_problem(self) -> bool:
        """Whether the service explains itself."""
        return self.kind.partition(";")[0].strip().lower() == PROBLEM


def read(
    reply: Reply | Lost, decoder: msgspec.json.Decoder[T], at: str, timeout_s: float, request_id: str | None
) -> T:
    """The answer that a reply from `at` holds.

    Raises:
        ClientError: there is none.
    """
    if isinstance(reply, Lost):
        raise _lost(reply, at, timeout_s, request_id)
    if reply.code == HTTPStatus.OK:
        try:
            return decoder.decode(reply.body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            detail = f"{at} answers, but not as a tabrank service does: {error}; is the address right?"
            raise Unreachable(detail, request_id) from None
    raise _refused(reply, at, request_id)


def _lost(reply: Lost, at: str, timeout_s: float, request_id: str | None) -> ClientError:
    if reply.timed_out:
        return TimedOut(f"{at} did not answer within {timeout_s:g} s", request_id)
    return Unreachable(f"{at} cannot be reached: {reply.reason}", request_id)


def _refused(reply: Reply, at: str, request_id: str | None) -> ClientError:
    if reply.is_problem:
        try:
            problem = msgspec.json.decode(reply.body, type=Problem)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass  # said by nobody who knows what a problem is
        else:
            return Refused(
                reply.code,
                problem.title,
                problem.detail,
                pointer=problem.pointer,
                request_id=problem.request_id or request_id,
                retry_after_s=reply.retry_after_s,
            )
    said = reply.body[:SHOWN].decode("utf-8", "replace").strip() or "no more was said"
    if reply.status is None:
        detail = f"something before {at} answered {reply.code} in its place: {said}"
        return Unreachable(detail, request_id)
    return Refused(
        reply.code, _phrase(reply.code), said, request_id=request_id, retry_after_s=reply.retry_after_s
    )


def _phrase(status: int) -> str:
    return responses.get(status, "unknown status").lower()
