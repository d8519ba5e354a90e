"""Run folder of one service: its files, its lock, and how to find its processes.

Each process of the service's cluster inherits an environment variable that names the folder. The
processes that a kill -9 leaves behind are therefore found in `/proc/<pid>/environ`, and no other
cluster on the machine is ever touched. The temporary folder holds a file that is named like this
variable, so that it is found again after the run folder was deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from serve.contract.commands import RUN
from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_file
from serve.operate.host.service_state import SupervisedState, Wanted
from serve.storage.atomic_files import exclusive

Kind = TypeVar("Kind")
MARKER = "TABRANK_CLUSTER"
# Ray opens its folder to every user, so it lies inside a private folder of ours.
RAY = "r"
SUPERVISE = "--supervise"
POLL_S = 0.1
TEMP = Path("/tmp")
# The processes without which a Ray node cannot run.
NODE = RAYLET, GCS = ("raylet", "gcs_server")
# The node's processes have this time to end once they are asked to, and are then killed. They take
# 1 s.
STOP_S = 2.0
# Running requests and the replicas' own shutdown, which takes 4 s, have this time before the node
# ends. Together with STOP_S, which counts again if the supervisor hangs, `down` takes at most 10 s.
GRACE_S = 5.0
# Killed processes have this time to end. On an overloaded machine, the kernel takes seconds to free
# the memory of each.
KILL_S = 15.0
# Limits the kept logs. The bytes are enough for a session of some days; of longer logs, only the
# newest lines are kept.
KEPT_SESSIONS, KEPT_BYTES = 3, 64 << 20
MEASURED_EVERY_S = 30.0


class RunFolder:
    """Run folder at a path, which need not exist, and the paths of its files.

    `log` is the supervisor's log. `kept_logs` has a folder of logs for each of the last sessions.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        refuse_file(self.path)
        self.cluster_id = hashlib.sha256(str(self.path).encode()).hexdigest()[:8]
        self.log = self.path / "supervisor.log"
        self.kept_logs = self.path / "logs"

    @property
    def temp(self) -> Path | None:
        """Return the folder of sockets and Ray's own logs, or None."""
        for mark in TEMP.glob(f"tabrank-*/{self.cluster_id}"):
            with contextlib.suppress(OSError):
                # Another user may have created a folder with such a name.
                if mark.parent.lstat().st_uid == os.getuid():
                    return mark.parent
        return None

    def make_temp(self) -> Path:
        """Create the temporary folder under an unpredictable name, closed to other users.

        The name is short, because the path of a Unix socket has at most 107 characters.
        """
        folder = Path(tempfile.mkdtemp(prefix="tabrank-", dir=TEMP))
        (folder / self.cluster_id).touch()
        return folder

    def hold_temp(self) -> None:
        """Lock the temporary folder until this process ends, so that systemd-tmpfiles spares it."""
        if self.temp is not None:
            fcntl.flock(os.open(self.temp, os.O_RDONLY), fcntl.LOCK_SH)

    @property
    def replica_logs(self) -> Path | None:
        """Return the folder of the logs of replicas, controller and proxies, or None."""
        return self.temp and self.temp / RAY / "session_latest" / "logs" / "serve"

    def command(self, name: str, config: Path) -> str:
        """Return a command for its service and a file, such as `up`, which restarts it."""
        given = "" if self.path == RUN.resolve() else f" --run {shlex.quote(str(self.path))}"
        return f"python -m serve {name} {shlex.quote(str(config))}{given}"

    def service(self) -> SupervisedState | None:
        """Return the content of `service.json`; None without one.

        Raise TabrankError if it is not readable, or another version of tabrank wrote it.
        """
        return self._read("service.json", SupervisedState)

    def write(self, service: SupervisedState) -> None:
        """Replace `service.json` atomically: a reader sees the old or the new content."""
        self._replace("service.json", msgspec.json.format(msgspec.json.encode(service)))

    def write_pid(self) -> None:
        """Write the supervisor's process id, for systemd."""
        self._replace("supervisor.pid", f"{os.getpid()}\n".encode())

    def age_s(self) -> float:
        """Return the seconds since `service.json` was written."""
        try:
            return time.time() - (self.path / "service.json").stat().st_mtime
        except FileNotFoundError:
            return math.inf

    def save_wanted(self, wanted: Wanted) -> None:
        """Store what the supervisor is to deploy when it starts, or at its next SIGHUP."""
        self._replace("wanted.json", msgspec.json.encode(wanted))

    def wanted(self) -> Wanted | None:
        """Return what the supervisor is to deploy, or what it has deployed last."""
        return self._read("wanted.json", Wanted)

    def deployed(self) -> tuple[Wanted, Wanted]:
        """Return what the last deploy was to bring, and what the last finished deploy brought.

        They differ while a deploy is under way, and after a failed one. Both are empty if there was
        no deploy. A command that holds the lock, and finds them as before, is the only one that
        deploys.
        """
        # The supervisor deploys what is wanted. Read first, it is never newer than what runs.
        wanted, service = self.wanted(), self.service() or SupervisedState(config="")
        return wanted or Wanted("", {}), Wanted(service.config, service.document)

    def remove_state(self, *, keep_wanted: bool = False) -> None:
        """Remove the files that describe a running service, but for the document if it is kept."""
        for name in ("service.json", "supervisor.pid", *["wanted.json"] * (not keep_wanted)):
            (self.path / name).unlink(missing_ok=True)

    def _read(self, name: str, kind: type[Kind]) -> Kind | None:
        path = self.path / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except msgspec.ValidationError as error:
            raise TabrankError(
                f"{path}: another version of tabrank wrote it ({error}), so no change can be confirmed; restart the "
                f"service: run `up` again, with --yes and --run {self.path}"
            ) from None
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        except OSError as error:
            raise TabrankError(f"{path}: {error.strerror}; make it a file that this user may read") from None

    def _replace(self, name: str, content: bytes) -> None:
        """Replace a file; raise TabrankError if the disk is full or the folder is not writable."""
        fresh = self.path / f"{name}.new"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A store's password may be in it.
            fresh.touch(mode=0o600)
            fresh.write_bytes(content)
            fresh.replace(self.path / name)
        except OSError as error:
            raise TabrankError(f"{fresh}: {error.strerror}; free some space, or make it writable") from None

    def keep_logs(self) -> Path | None:
        """Copy the logs of the ending session, remove the oldest logs, and return the new folder.

        Raise OSError if the disk is full; the logs that were copied before stay.
        """
        if self.replica_logs is None:
            return None
        source = self.replica_logs.parent
        kept = self.kept_logs / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        for oldest in sorted(self.kept_logs.glob("*/"))[: 1 - KEPT_SESSIONS]:
            shutil.rmtree(oldest, ignore_errors=True)
        left = KEPT_BYTES
        files = [path for path in [self.log, *source.rglob("*")] if path.is_file() and not path.is_symlink()]
        for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
            size = min(path.stat().st_size, left)
            if not size:
                continue
            left -= size
            for folder in (self.kept_logs, kept):
                folder.mkdir(mode=0o700, exist_ok=True)
            target = kept / (path.name if path == self.log else "_".join(path.relative_to(source).parts))
            target.touch(mode=0o600)
            with path.open("rb") as old, target.open("wb") as new:
                # Only the last lines of a log that is too long are kept.
                old.seek(-size, os.SEEK_END)
                new.write(old.read(size))
        return kept if kept.exists() else None

    def processes(self) -> list[psutil.Process]:
        """Return each living process of this run's cluster."""
        return processes_with(MARKER, self.cluster_id)

    def supervisors(self, processes: Iterable[psutil.Process] | None = None) -> list[psutil.Process]:
        """Return the supervisor, if it lives; pass the cluster's `processes` if they are known."""
        found = []
        for process in self.processes() if processes is None else processes:
            with contextlib.suppress(psutil.Error):
                if SUPERVISE in process.cmdline():
                    found.append(process)
        return found

    def node(self) -> list[psutil.Process]:
        """Return the Ray node's processes; without one of them the service ends."""
        return [process for process in self.processes() if name_of(process) in NODE]

    def end(self) -> list[str]:
        """End each process of the cluster by its id; return the names of killed processes.

        Raise TabrankError if one of them cannot be ended.
        """
        # The raylet goes first, because it ends its workers. The GCS goes last, because the others
        # need it in order to end.
        others = {name_of(process) for process in self.processes()} - {*NODE}
        deadline = time.monotonic() + STOP_S
        for names in ({RAYLET}, others, {GCS}):
            asked = [process for process in self.processes() if name_of(process) in names]
            for process in asked:
                with contextlib.suppress(psutil.Error):
                    process.terminate()
            wait_for_end(asked, deadline - time.monotonic())
        return kill(self.processes)

    def locked(self, timeout_s: float) -> contextlib.AbstractContextManager[None]:
        """Hold the folder's lock, so that two commands do not start and stop one service."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return exclusive(self.path / "lock", f"{self.path}: another up or down runs; retry later", timeout_s)


def processes_with(name: str, value: str) -> list[psutil.Process]:
    """Return the other living processes whose environment has this value of a variable."""
    found = []
    for process in psutil.process_iter():
        # Processes of other users, and those that end meanwhile, cannot be read.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(name) == value and process.pid != os.getpid():
                found.append(process)
    return found


def wait_for_end(processes: Iterable[psutil.Process], timeout_s: float) -> None:
    """Wait until the processes have ended; a zombie, which its parent has not reaped, has ended."""
    deadline = time.monotonic() + timeout_s
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                time.sleep(POLL_S / 2)


def kill(find: Callable[[], list[psutil.Process]]) -> list[str]:
    """Kill processes by id until none is found; return their names.

    Raise TabrankError if one of them cannot be ended.
    """
    killed = []
    deadline = time.monotonic() + KILL_S
    # Look again until none is left, because a dying parent may have just started a child.
    while left := find():
        for process in left:
            killed.append(name_of(process))
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_for_end(left, STOP_S)
        if time.monotonic() > deadline:
            raise TabrankError(f"process {left[0].pid} cannot be ended; end it, then try again")
    return killed


def name_of(process: psutil.Process) -> str:
    """Return the name of a process; empty if it has ended."""
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


def memory_mib(processes: Iterable[psutil.Process]) -> int:
    """Return the memory of living processes in MiB; a page that they share counts once.

    It is measured at most twice a minute, because the kernel walks all their pages and gives them
    no new ones meanwhile.
    """
    return _memory_mib(tuple(processes), time.monotonic() // MEASURED_EVERY_S)


@lru_cache(1)
def _memory_mib(processes: tuple[psutil.Process, ...], _: float) -> int:
    num_bytes = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            num_bytes += process.memory_full_info().pss
    return num_bytes >> 20
