"""Headers of requests: their limits and the values that the service reads."""

from __future__ import annotations

import re
from collections.abc import Sequence

from serve.contract.errors import RequestError
from serve.contract.messages import quoted
from serve.http.answers import JSON, Header

Headers = dict[bytes, bytes]

# Limits on the headers of a request. HAProxy's own limits are a little higher: 101 headers, and 19
# KiB with the request line.
MAX_HEADERS = 100
# Headers that are added to the client's: HAProxy's stamp, and an id if the client gave none.
OUR_HEADERS = 2
MAX_HEADER_BYTES = 16 * 1024
# A request id in a header.
VALID_ID = re.compile(rb"[\x21-\x7e]{1,256}")


def require_few(headers: Sequence[Header]) -> None:
    """Raise RequestError 431 if there are too many headers, or if they have too many bytes."""
    if (
        len(headers) > MAX_HEADERS + OUR_HEADERS
        or sum([len(name) + len(value) for name, value in headers]) > MAX_HEADER_BYTES
    ):
        detail = f"a request may have {MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes of them; send fewer"
        raise RequestError(431, "headers too large", detail)


def request_id_of(headers: Headers) -> str | None:
    """Return the value of `X-Request-Id`; raise RequestError 400 if it is invalid."""
    given = headers.get(b"x-request-id")
    if given is None:
        return None
    if not VALID_ID.fullmatch(given):
        detail = "X-Request-Id must be 1 to 256 printable ASCII characters, no space"
        raise RequestError(400, "bad header", detail)
    return given.decode()


def deadline_ms_of(headers: Headers) -> int | None:
    """Return the value of `X-Deadline-Ms`; raise RequestError 400 if it is invalid."""
    given = headers.get(b"x-deadline-ms")
    if given is None:
        return None
    if not given.isdigit() or len(given) > 5 or not 1 <= int(given) <= 60_000:
        raise RequestError(400, "bad header", "X-Deadline-Ms must be an integer from 1 to 60000")
    return int(given)


def require_no_page(headers: Headers) -> None:
    """Refuse requests that browsers send for any web page: HTML forms and foreign origins."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != JSON:
        instead = f", not {quoted(kind.decode('latin-1'))}" if kind else ""
        raise RequestError(415, "unsupported media type", f"send Content-Type: {JSON.decode()}{instead}")
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
        raise RequestError(
            403,
            "forbidden",
            f"a page of {quoted(origin.decode('latin-1'))} may not post here: Origin must be this service's "
            "own; send the request from a server, without Origin",
        )
