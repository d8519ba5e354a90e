"""The listening socket: sixteen connections are accepted a turn of the event loop, where uvloop accepts one.

In an overload a turn takes 30 ms. At one a turn, hundreds of HAProxy's new connections then wait for seconds to be
accepted, and its health check behind them: it takes the replica for dead, and sends all to Ray's slow Python proxy.
"""

from __future__ import annotations

import socket
from functools import wraps
from typing import Any

import uvicorn

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
