"""Faults of the store, and a full disk. They affect only a copy of the workspace's store."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path

import psutil

from loadtest.commands import die_with_parent, failure, run_command
from loadtest.measure.polling import within
from loadtest.report.report import Report
from loadtest.scenarios.chaos.fault import TWO, Allowed, Fault, Injected
from loadtest.targets.running import REPLICA, Target
from loadtest.targets.services import Document, free_port

# Size of the garbage that replaces the store's file.
GARBAGE_BYTES = 1 << 20
# Size of LMDB's two meta pages. A commit writes beyond them, and fails.
FULL_BYTES = 8192
# Nobody may notice the fault, and all is as before within 5 s of its end.
HEALED = Allowed(failed_share=0.0, first="none", whole_s=5.0)
# Time within which a Redis server must start.
START_S = 20.0
INGEST = REPLICA + "Ingest"
# Path of the Redis server's program, or None if it is not installed.
PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")


class FileReplaced(Fault):
    """Fault that replaces the store's file by another one, and later restores it."""

    replicas, allowed, hold_s, watch_s = TWO, HEALED, 6.0, 12.0

    def __init__(self, name: str, what: str, garbage: bool) -> None:
        self.name, self.what, self._garbage = name, what, garbage

    def inject(self, target: Target) -> None:
        """Replace the store's file by garbage or by an empty file."""
        self._data = data = next((target.folder / "chaos" / "store").rglob("data.mdb"))
        os.replace(data, data.with_name("aside.mdb"))
        data.write_bytes(os.urandom(GARBAGE_BYTES) if self._garbage else b"")

    def heal(self, target: Target) -> None:
        """Restore the store's file."""
        os.replace(self._data.with_name("aside.mdb"), self._data)


class DiskFull(Fault):
    """Fault that lets the files of Ingest grow no more, as on a full disk.

    It is a limit on the size of files (RLIMIT_FSIZE), which affects no other process. A full file
    system would affect all.
    """

    name, what = "disk-full", "disk full for Ingest, 20 s"
    allowed, hold_s, watch_s = HEALED, 20.0, 10.0

    def inject(self, target: Target) -> None:
        """Limit the size of the files of Ingest."""
        limit_files(target.find(INGEST), FULL_BYTES)

    def heal(self, target: Target) -> None:
        """Lift the limit of the Ingest that runs now."""
        limit_files(target.find(INGEST), resource.RLIM_INFINITY)

    def measured(self, load: Injected) -> tuple[Report, list[str]]:
        """Return how many rankings the service counted, and how many it logged or did not log."""
        counted = load.gained("ray_tabrank_rankings_total")
        logged = load.gained("ray_tabrank_records_total", kind="exposure")
        dropped, thinned = (
            load.gained(f"ray_tabrank_exposures_{how}_total") for how in ("dropped", "thinned")
        )
        note = f"{counted:,.0f} rankings were counted; {logged:,.0f} exposures were logged, "
        note += f"{dropped:,.0f} dropped, and {thinned:,.0f} left out by sampling"
        numbers = {"rankings_counted": counted, "exposures_logged": logged, "exposures_dropped": dropped}
        numbers["exposures_thinned"] = thinned
        return {**numbers, "notes": [note]}, []


class RedisKilled(Fault):
    """Fault that kills the Redis server which is the service's store, and starts it again."""

    name, what = "redis", "kill -9 redis, back after 6 s"
    replicas, allowed, hold_s, watch_s = TWO, HEALED, 6.0, 12.0

    _process: subprocess.Popen[bytes] | None = None

    def missing(self) -> str | None:
        """Return a reason if no server program is installed."""
        return None if PROGRAM else "redis-server is not installed; install Redis or Valkey"

    def prepare(self, document: Document, folder: Path) -> None:
        """Start a server, fill it from the workspace's log, and set it as the service's store."""
        # End the server of an earlier run of this fault.
        self.end()
        self._port, self._folder = free_port(), folder / "redis"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._start()
        store = f"redis://127.0.0.1:{self._port}/0"
        log = next(folder.glob("spaces-*/log"))
        run_command("serve", "load", "--log", str(log), "--store", store, log=folder / "chaos.log")
        document["applications"][0]["args"]["store"] = store

    def inject(self, target: Target) -> None:
        """Kill the server."""
        self.end()

    def heal(self, target: Target) -> None:
        """Start the server again, with its persisted data."""
        self._start()

    def end(self) -> None:
        """Kill the server if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        assert PROGRAM is not None, "`missing` reports that it is not installed"
        place = ["--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._folder)]
        kept = ["--save", "", "--appendonly", "yes", "--daemonize", "no"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, *place, *kept], stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        if within(START_S, self._answers) is None:
            raise failure("redis did not start", self._folder / "server.log")

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self._port), 1.0) as client:
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")


def limit_files(processes: Iterable[psutil.Process], num_bytes: int) -> None:
    """Limit the size in bytes to which these processes can grow a file."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
            process.rlimit(psutil.RLIMIT_FSIZE, (num_bytes, hard))


FILES: tuple[Fault, ...] = (
    FileReplaced("store-replaced", "LMDB file replaced by an empty one, then restored", garbage=False),
    FileReplaced("store-corrupt", "LMDB file replaced by garbage, then restored", garbage=True),
)
