"""Fixtures shared by many tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis_server import MISSING, RedisServer, find_server
from tiny import TOML, tables

from serve.features.surface import Surface, read_surface
from serve.log.writer import write_log

# A shell that runs a command in the background makes it ignore SIGINT, and its children inherit
# that. The commands that tests interrupt must not ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def surface() -> Surface:
    """Return the small surface."""
    return read_surface(TOML, "tiny.toml")


@pytest.fixture
def log_folder(tmp_path: Path) -> Path:
    """Write `tables` as a log, and return its folder."""
    write_log(tmp_path / "log", tables())
    return tmp_path / "log"


@pytest.fixture(scope="session")
def ranklens() -> Path:
    """Return the folder of the RankLens data, which is not part of the project."""
    root = Path(__file__).parents[1]
    for folder in (
        os.environ.get("TABRANK_RANKLENS"),
        root.parent / "shared/ranklens",
        root / "var/ranklens",
    ):
        if folder and (Path(folder) / "impressions.csv.gz").is_file():
            return Path(folder)
    pytest.skip("RankLens is missing: run `make ranklens`, or set TABRANK_RANKLENS to its folder")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Yield a running Redis server; a test that stops it must start it again."""
    if find_server() is None:
        pytest.skip(MISSING)
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendfsync", "always")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def empty_redis_server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """Yield the server without data; a test may kill it."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    yield redis_server
    if redis_server.process is None:
        redis_server.start()
