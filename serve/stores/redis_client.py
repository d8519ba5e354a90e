"""Redis client for an address."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serve.contract.errors import TabrankError

TIMEOUT_S = 1.0
# `serve check` refuses a password in the address, because Ray would write it to its logs.
PASSWORD = "TABRANK_REDIS_PASSWORD"


def connect(url: str, name: str | None = None) -> redis.Redis:
    """Return a client of the server at a `redis://` or `rediss://` address.

    The client connects at its first command, and tells the server its `name` if the server allows
    it. A password in the address overrides the one in the environment.

    Raises:
        TabrankError: it is not such an address.
    """
    # Do not retry: a commit whose answer was lost may have been written. redis-py replaces a stale
    # connection before it uses it.
    settings: dict[str, Any] = {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "redis_connect_func": partial(_connected, name=name) if name else None,
        "password": os.environ.get(PASSWORD) or None,
    }
    try:
        client = redis.Redis.from_url(url, **settings)
        pool = client.connection_pool
        # Only the connection's constructor refuses an option that does not exist, so call it.
        pool.connection_class(**pool.connection_kwargs)
    # Do not show the original error, which may hold the password.
    except (TypeError, ValueError):
        raise TabrankError(
            "store: not an address of a Redis server; use redis://USER:PASSWORD@HOST:PORT/DB, or rediss:// for TLS"
        ) from None
    return client


def _connected(connection: redis.Connection, name: str) -> None:
    connection.on_connect()
    # Some servers forbid CLIENT; unlike redis-py's `client_name`, go on without a name.
    with suppress(redis.ResponseError):
        connection.send_command("CLIENT", "SETNAME", name)
        connection.read_response()
