"""Fixtures shared by many tests."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import redis
import typer.main
import typer.testing

import serve.storage.bucket
from serve.features.surface import Surface, read_surface
from serve.http.openapi import openapi
from serve.log.writer import write_log
from serve.storage.bucket import place
from tests.support.progress import Progress
from tests.support.redis_server import MISSING, RedisServer, find_server
from tests.support.s3_server import FaultyBucket, MemoryBucket, environment, named
from tests.support.small_surface import TOML, tables

# A shell that runs a command in the background makes it ignore SIGINT, and its children inherit
# that. The commands that tests interrupt must not ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest, with Ray and without. A lane hands one file after another to two
# processes: those that begin last must be short, or one process waits for the other.
LONGEST_FIRST = (
    "tests/test_readme.py",
    "tests/test_pinned.py",
    "tests/test_end_to_end.py",
    "tests/serve/operate/run/test_local_cluster.py",
    "tests/serve/operate/diff/test_consequences.py",
    "tests/test_diagnosed.py",
    "tests/test_bucket_loop.py",
    "tests/test_live_loop.py",
    "tests/serve/http/test_exposure.py",
    "tests/serve/rollout/test_rollout_served.py",
    "tests/loadtest/scenarios/test_run.py",
    "tests/loadtest/scenarios/test_freshness.py",
    "tests/serve/ingest/test_bucket_faults.py",
    "tests/serve/ingest/test_kill.py",
    "tests/serve/ranking/test_faults.py",
    "tests/training/erasure/test_served.py",
    "tests/serve/operate/console/test_pages.py",
)


# A commit waits for a disk, and tests kill processes, not machines: so keep their files in memory,
# if there is room for the files of a lane.
MEMORY, MEMORY_BYTES = Path("/dev/shm"), 4 * 1024**3


def pytest_configure(config: pytest.Config) -> None:
    """Let `tmp_path` be in memory where there is enough, and programs in it can be run."""
    if "PROGRESS_OF" in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(os.environ.pop("PROGRESS_OF")))
    if MEMORY.is_dir():
        disk = os.statvfs(MEMORY)
        if disk.f_bavail * disk.f_frsize >= MEMORY_BYTES and not disk.f_flag & os.ST_NOEXEC:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where only integration tests run, do not import files that have none: it takes seconds."""
    is_wanted = config.option.markexpr.startswith("integration")
    if is_wanted and collection_path.name.startswith("test_") and collection_path.suffix == ".py":
        return "integration" not in collection_path.read_text() or None
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests of a GPU without one; move the longest files to the front, each in its order."""
    if (on_gpu := [item for item in items if "gpu" in item.keywords]) and not has_gpu():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip("torch finds no CUDA device: run it on a machine with a GPU"))
    places = {config.rootpath / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives until the end: it takes a sixth of a lane's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def has_gpu() -> bool:
    """Return whether torch finds a CUDA device. Few files need torch, so it is imported here."""
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def surface() -> Surface:
    """Return the small surface."""
    return read_surface(TOML, "tiny.toml")


@pytest.fixture(scope="session")
def written_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write `tables` as a log, and return its folder; tests change a copy of it."""
    folder = tmp_path_factory.mktemp("written") / "log"
    write_log(folder, tables())
    return folder


@pytest.fixture
def log_folder(tmp_path: Path, written_log: Path) -> Path:
    """Return the folder of a log that holds `tables`."""
    return shutil.copytree(written_log, tmp_path / "log")


@pytest.fixture(scope="session", autouse=True)
def one_document_a_surface() -> Iterator[None]:
    """Make the OpenAPI document of each surface once: it takes longer than most tests."""
    documents: dict[str, dict[str, Any]] = {}

    def made_once(surface: Surface, *, event_clock: bool) -> dict[str, Any]:
        key = repr((surface, event_clock))
        if key not in documents:
            documents[key] = openapi(surface, event_clock=event_clock)
        return documents[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve.http.app.openapi", made_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_parser_an_application() -> Iterator[None]:
    """Make the parser of each command line once; typer's runner makes it at each call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", cache(typer.main.get_command))
        yield


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


@pytest.fixture(scope="session")
def session_bucket() -> Iterator[FaultyBucket]:
    """Yield the way to a bucket: one for all tests, because clients keep their connections."""
    way = FaultyBucket(MemoryBucket())
    # Set until the end: the mirrors of earlier tests go on asking, and a store that is made without
    # these variables is kept, and asks the machine for credentials.
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(way.url).items():
            patch.setenv(name, value)
        yield way
    way.close()


@pytest.fixture
def bucket(session_bucket: FaultyBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaultyBucket:
    """Yield the way to a bucket, which this process and its children find; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # The server is near, and its faults pass at once.
    for name, pause_s in (("init_backoff", 0.005), ("max_backoff", 0.02)):
        monkeypatch.setitem(serve.storage.bucket.BACKOFF, name, timedelta(seconds=pause_s))
    # A store of an earlier test may give up sooner.
    serve.storage.bucket._store.cache_clear()
    session_bucket.seen.clear()
    return session_bucket


@pytest.fixture(params=["folder", "bucket"])
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    """Return what makes the path of a new folder, on the disk or in a bucket, which has no file."""
    if request.param == "folder":
        return tmp_path.__truediv__
    request.getfixturevalue("bucket")
    return lambda name: place(named(name))
