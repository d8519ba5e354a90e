"""From the address of a Redis server to its client, and to what messages may say of it."""

from __future__ import annotations

import os
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serve.contract.errors import TabrankError

TIMEOUT_S = 1.0
PASSWORD = "TABRANK_REDIS_PASSWORD"  # `check` refuses one in the address: Ray would write it to its logs


def connect(url: str) -> redis.Redis:
    """A client of the server at a `redis://` or `rediss://` address; it connects at its first command.

    A password in the address wins over that of the environment.
    Raises TabrankError for what is no such address.
    """
    # No retries: a commit whose answer was lost may be written. A stale connection is replaced before it is used.
    settings: dict[str, Any] = {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "password": os.environ.get(PASSWORD) or None,
    }
    try:
        client = redis.Redis.from_url(url, **settings)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # an option that does not exist shows only here
    except (TypeError, ValueError):  # not what they say: it may hold the password
        raise TabrankError(
            "store: this is no address of a Redis server; use redis://USER:PASSWORD@HOST:PORT/DB, or rediss:// for TLS"
        ) from None
    return client


def where(url: str, client: redis.Redis) -> str:
    """The address without user and password."""
    at = client.connection_pool.connection_kwargs
    return f"{url.partition(':')[0]}://{at.get('host', 'localhost')}:{at.get('port', 6379)}/{at.get('db', 0)}"
