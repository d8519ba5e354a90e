"""Exceptions of the client."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from serve.contract.errors import TabrankError


class ClientError(TabrankError):
    """Base of all client errors.

    `request_id` identifies a ranking in the service's log; it is None for `send`.
    """

    def __init__(self, message: str, request_id: str | None) -> None:
        super().__init__(message)
        self.request_id = request_id


@dataclass(eq=False)
class Refused(ClientError):
    """The service answered with an error status.

    The attributes are those of its `application/problem+json`: `detail` says what is wrong and
    `pointer` where in the request. `retry_after_s` is the header `Retry-After`.
    """

    status: int
    title: str
    detail: str
    _: KW_ONLY
    pointer: str | None = None
    request_id: str | None = None
    retry_after_s: float | None = None

    def __str__(self) -> str:
        at = f" (at {self.pointer})" if self.pointer else ""
        return f"{self.status} {self.title}: {self.detail}{at}"


class TimedOut(ClientError):
    """No answer within the timeout. Records may have been stored."""


class Unreachable(ClientError):
    """The connection failed, or a proxy answered instead of the service.

    Records may have been stored.
    """
