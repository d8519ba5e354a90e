"""What a call of the client may end in, besides its answer."""

from __future__ import annotations

from serve.contract.errors import TabrankError


class ClientError(TabrankError):
    """No answer. `request_id` finds a ranking in the service's log; None where records were sent."""

    def __init__(self, message: str, request_id: str | None) -> None:
        super().__init__(message)
        self.request_id = request_id


class Refused(ClientError):
    """The service answered, with another status than 200; what a `problem+json` says, by its names."""

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
    """Nothing came within the timeout. Records may have been taken."""


class Unreachable(ClientError):
    """The connection failed, or something on the way answered in the service's place. Records may have been taken."""
