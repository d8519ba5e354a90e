"""Exceptions of the client."""

from __future__ import annotations

from serve.contract.errors import TabrankError


class ClientError(TabrankError):
    """Base of all client errors.

    `request_id` identifies a ranking in the service's log; it is None for `send`.
    """

    def __init__(self, message: str, request_id: str | None) -> None:
        super().__init__(message)
        self.request_id = request_id


class Refused(ClientError):
    """The service answered with a status other than 200; attributes are those of `problem+json`."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        pointer: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        at = f" (at {pointer})" if pointer else ""
        super().__init__(f"{status} {title}: {detail}{at}", request_id)
        self.status = status
        self.title = title
        self.detail = detail
        self.pointer = pointer
        self.retry_after_s = retry_after_s


class TimedOut(ClientError):
    """No answer within the timeout. Records may have been stored."""


class Unreachable(ClientError):
    """The connection failed, or a proxy answered instead of the service.

    Records may have been stored.
    """
