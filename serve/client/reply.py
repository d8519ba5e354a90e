"""Reply to one attempt."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

PROBLEM = "application/problem+json"
# Without a `problem+json` body these statuses come from a proxy that reached no service. HAProxy
# answers 502 if a replica died with the request, and 404 before its routes are loaded.
PROXY_STATUSES = (404, 500, 502, 504)


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
