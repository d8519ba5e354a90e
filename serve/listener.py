"""uvicorn, mended: many connections are accepted a turn of the event loop, and trailers are no headers.

uvloop accepts one connection a turn. In an overload a turn takes 30 ms: hundreds of HAProxy's new connections then wait
for seconds to be accepted, and its health check behind them: it takes the replica for dead, and sends all to Ray's slow
Python proxy.
"""

from __future__ import annotations

import socket
from functools import wraps
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

ACCEPTS = 16


def accept_more() -> None:
    """Have uvicorn's servers that start in this process from now on listen on each socket `ACCEPTS` times."""
    startup = uvicorn.Server.startup
    if hasattr(startup, "__wrapped__"):
        return

    @wraps(startup)
    async def listen(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> Any:
        more = [one.dup() for one in sockets or [] for _ in range(ACCEPTS - 1)]
        return await startup(server, sockets and [*sockets, *more])

    uvicorn.Server.startup = listen  # type: ignore[method-assign, assignment]


def drop_trailers() -> None:
    """Have uvicorn's servers of this process pass on what came in the header block alone.

    uvicorn appends the trailers of a chunked body to the same list. A key or a deadline could come that way, past
    whatever looks at headers before the service.
    """
    complete = HttpToolsProtocol.on_headers_complete
    if hasattr(complete, "__wrapped__"):
        return

    @wraps(complete)
    def on_headers_complete(protocol: HttpToolsProtocol) -> None:
        complete(protocol)
        protocol.scope["headers"] = [*protocol.headers]

    HttpToolsProtocol.on_headers_complete = on_headers_complete  # type: ignore[method-assign, assignment]
