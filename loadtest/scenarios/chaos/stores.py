"""A store that is gone for a while, and a disk that is full. The store is the run's own copy, never a user's."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from loadtest.commands import die_with_parent, last_lines, run_command
from loadtest.errors import LoadtestError
from loadtest.measure.metrics_page import total
from loadtest.scenarios.chaos.fault import TWO, Allowed, Document, Fault
from loadtest.scenarios.chaos.target import REPLICA, Target
from loadtest.targets.services import free_port

GARBAGE_BYTES = 1 << 20
FULL_BYTES = 8192  # LMDB's two meta pages: what a commit needs beyond them is not there
HEALED = Allowed(failed_share=0.0, first="none", whole_s=5.0)
START_S = 20.0
INGEST = REPLICA + "Ingest"


class FileReplaced(Fault):
    """The store's file gives way to another, and comes back."""

    replicas, allowed, hold_s, watch_s = TWO, HEALED, 6.0, 12.0

    def __init__(self, name: str, what: str, garbage: bool) -> None:
        self.name, self.what, self._garbage = name, what, garbage

    def inject(self, target: Target) -> None:
        """Put garbage, or an empty file, in the place of the store's."""
        data = _data(target.folder)
        os.replace(data, _aside(data))
        data.write_bytes(os.urandom(GARBAGE_BYTES) if self._garbage else b"")

    def heal(self, target: Target) -> None:
        """Put the store's own file back."""
        data = _data(target.folder)
        os.replace(_aside(data), data)


class DiskFull(Fault):
    """No file of Ingest's can grow: what a full disk does to a commit, by the limit of its process (RLIMIT_FSIZE).

    Nothing else of the machine is touched, which a full file system would.
    """

    name, what = "disk-full", "no room on the disk for Ingest, 20 s"
    allowed = Allowed(failed_share=0.0, first="none", whole_s=5.0)
    hold_s, watch_s = 20.0, 10.0

    def inject(self, target: Target) -> None:
        """Limit the size of its files."""
        limit_files(target.find(INGEST), FULL_BYTES)

    def heal(self, target: Target) -> None:
        """Lift the limit, of whichever Ingest there is."""
        limit_files(target.find(INGEST), resource.RLIM_INFINITY)

    def counted(self, before: Any, after: Any) -> dict[str, float]:
        """What became of the rankings' exposures, as the service counts them."""

        def gained(name: str, **labels: str) -> float:
            return total(after, name, **labels) - total(before, name, **labels)

        return {
            "rankings_counted": gained("ray_tabrank_rankings_total"),
            "exposures_logged": gained("ray_tabrank_records_total", kind="exposure"),
            "exposures_dropped": gained("ray_tabrank_exposures_dropped_total"),
        }


class RedisKilled(Fault):
    """A Redis server of our own, killed and started again."""

    name, what = "redis", "kill -9 redis, back after 6 s"
    replicas, allowed, hold_s, watch_s = TWO, HEALED, 6.0, 12.0

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._port, self._folder = 0, Path()

    def missing(self) -> str | None:
        """Needs the server's program."""
        return None if _program() else "redis-server is not installed"

    def prepare(self, document: Document, folder: Path) -> None:
        """Start a server, fill it from the workspace's log, and have the service use it."""
        self.end()  # of an earlier time
        self._port, self._folder = free_port(), folder / "redis"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._start()
        store = f"redis://127.0.0.1:{self._port}/0"
        log = next(folder.glob("spaces-*/log"))
        run_command("serve", "load", "--log", str(log), "--store", store, log=folder / "chaos.log")
        document["applications"][0]["args"]["store"] = store

    def inject(self, target: Target) -> None:
        """Kill it."""
        self.end()

    def heal(self, target: Target) -> None:
        """Start it again; it finds what it kept."""
        self._start()

    def end(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        program = _program()
        assert program is not None
        place = ["--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._folder)]
        kept = ["--save", "", "--appendonly", "yes", "--daemonize", "no"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, *place, *kept], stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), 1.0) as asked,
            ):
                asked.sendall(b"PING\r\n")
                if asked.recv(64).startswith(b"+PONG"):
                    return
            time.sleep(0.01)
        raise LoadtestError("redis did not start:\n  " + "\n  ".join(last_lines(self._folder / "server.log")))


def _program() -> str | None:
    return shutil.which("redis-server") or shutil.which("valkey-server")


def _data(folder: Path) -> Path:
    return next((folder / "chaos" / "store").rglob("data.mdb"))


def _aside(data: Path) -> Path:
    return data.with_name("aside.mdb")


def limit_files(processes: Iterable[psutil.Process], num_bytes: int) -> None:
    """Let no file of these processes grow beyond so many bytes."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
            process.rlimit(psutil.RLIMIT_FSIZE, (num_bytes, hard))


FILES: tuple[Fault, ...] = (
    FileReplaced("store-replaced", "the lmdb file replaced by an empty one, and put back", garbage=False),
    FileReplaced("store-corrupt", "the lmdb file replaced by garbage, and put back", garbage=True),
)
