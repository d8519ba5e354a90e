"""The folder of one running service: its files, its lock, and how its processes are found.

Every process of the service's cluster inherits one environment variable that names the folder. So what a
kill -9 leaves behind is found in `/proc/<pid>/environ`, and no other cluster on the machine is ever touched.
The temporary folder holds a file of the same name, so that it is found again after the run folder was deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_file

MARKER = "TABRANK_CLUSTER"
RAY = "r"  # Ray opens its folder to every user: so it lies in one of ours, which lets nobody in
SUPERVISE = "--supervise"
POLL_S = 0.1
TEMP = Path("/tmp")
# The processes that a Ray node stands on.
NODE = RAYLET, GCS = ("raylet", "gcs_server")
# A raylet ends its workers in 1 s; on a full machine it may take longer.
STOP_S = 5.0
# For running requests and the replicas' own shutdown; then processes are killed.
GRACE_S = 15.0
# The logs of one session of some days fit; the newest are kept where they do not.
KEPT_SESSIONS, KEPT_BYTES = 3, 64 << 20


@dataclass(frozen=True)
class RunFolder:
    """A run folder, and the names that follow from its path."""

    path: Path
    cluster_id: str

    @classmethod
    def of(cls, path: Path) -> RunFolder:
        """The run folder at this path, which need not exist yet; raises TabrankError where a file is."""
        path = path.resolve()
        refuse_file(path)
        return cls(path, hashlib.sha256(str(path).encode()).hexdigest()[:8])

    @property
    def temp(self) -> Path | None:
        """The folder of sockets and Ray's own logs, None while there is none."""
        for mark in TEMP.glob(f"tabrank-*/{self.cluster_id}"):
            with contextlib.suppress(OSError):
                # Another user may make such a folder too.
                if mark.parent.lstat().st_uid == os.getuid():
                    return mark.parent
        return None

    def make_temp(self) -> Path:
        """Make that folder under a name that nobody can foresee; let nobody else in.

        The name is short, because the path of a Unix socket ends at 107 characters.
        """
        folder = Path(tempfile.mkdtemp(prefix="tabrank-", dir=TEMP))
        (folder / self.cluster_id).touch()
        return folder

    def hold_temp(self) -> None:
        """Lock that folder until this process ends: systemd-tmpfiles deletes nothing old in a locked folder."""
        if self.temp is not None:
            fcntl.flock(os.open(self.temp, os.O_RDONLY), fcntl.LOCK_SH)

    @property
    def log(self) -> Path:
        """What the supervisor writes."""
        return self.path / "supervisor.log"

    @property
    def replica_logs(self) -> Path | None:
        """The folder of what replicas, controller and proxies write, a file each; None while there is none."""
        return self.temp and self.temp / RAY / "session_latest" / "logs" / "serve"

    @property
    def kept_logs(self) -> Path:
        """The folder of the last sessions' logs, a folder each."""
        return self.path / "logs"

    def service(self) -> dict[str, Any]:
        """The content of `service.json`, empty where there is none."""
        return self._read("service.json", json.loads)

    def write(self, service: Mapping[str, Any]) -> None:
        """Replace `service.json` in one step: a reader sees the old or the new content."""
        self._replace("service.json", json.dumps(service, indent=1) + "\n")

    def write_pid(self) -> None:
        """Name the supervisor, for systemd."""
        self._replace("supervisor.pid", f"{os.getpid()}\n")

    def age_s(self) -> float:
        """Return how long ago `service.json` was written."""
        try:
            return time.time() - (self.path / "service.json").stat().st_mtime
        except FileNotFoundError:
            return math.inf

    def deployed(self) -> dict[str, Any]:
        """The document that Serve was given last and that runs, with the pools of `nodes:`; empty if none does."""
        return self._read("deployed.yaml", yaml.safe_load)

    def has_deployed(self) -> bool:
        """Return whether the document that runs is noted."""
        return (self.path / "deployed.yaml").exists()

    def keep(self, document: Mapping[str, Any]) -> None:
        """Note the document that runs."""
        self._write_yaml("deployed.yaml", document)

    def want(self, config: Path, sha256: str, document: Mapping[str, Any]) -> None:
        """Leave for the supervisor what it is to deploy at the next SIGHUP, and the file that it is from."""
        self._write_yaml("wanted.yaml", {"config": str(config), "sha256": sha256, "document": dict(document)})

    def wanted(self) -> dict[str, Any]:
        """What `want` left."""
        return self._read("wanted.yaml", yaml.safe_load)

    def forget(self) -> None:
        """Remove what tells of a service that runs no more."""
        for name in ("service.json", "deployed.yaml", "wanted.yaml", "supervisor.pid"):
            (self.path / name).unlink(missing_ok=True)

    def _read(self, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
        """Return a file's mapping, empty where there is none; raise TabrankError where it cannot be read."""
        path = self.path / name
        try:
            content = parse(path.read_text())
        except (FileNotFoundError, ValueError, yaml.YAMLError):
            return {}
        except OSError as error:
            raise TabrankError(f"{path}: {error.strerror}; make it a file that this user may read") from None
        return content if isinstance(content, dict) else {}

    def _write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        self._replace(name, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))

    def _replace(self, name: str, text: str) -> None:
        """Raises TabrankError where there is no room for it, or nobody may write there."""
        fresh = self.path / f"{name}.new"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.touch(mode=0o600)  # a store's password may be in it
            fresh.write_text(text)
            fresh.replace(self.path / name)
        except OSError as error:
            raise TabrankError(f"{fresh}: {error.strerror}; make room for it there") from None

    def keep_logs(self) -> Path | None:
        """Copy the logs of the session that ends, and remove those of the oldest; return where they are.

        Raises OSError where there is no room; what was copied by then stays.
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
                # Of a log without an end the last lines count.
                old.seek(-size, os.SEEK_END)
                new.write(old.read(size))
        return kept if kept.exists() else None

    def processes(self) -> list[psutil.Process]:
        """Every living process of this run's cluster."""
        found = []
        for process in psutil.process_iter():
            # Processes of other users, and those that end meanwhile, cannot be read.
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARKER) == self.cluster_id and process.pid != os.getpid():
                    found.append(process)
        return found

    def supervisors(self) -> list[psutil.Process]:
        """The supervisor, if it lives."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if SUPERVISE in process.cmdline():
                    found.append(process)
        return found

    def node(self) -> list[psutil.Process]:
        """The processes that the Ray node stands on; where one is missing, the service has ended or soon will."""
        return [process for process in self.processes() if _name(process) in NODE]

    def end(self) -> list[str]:
        """End every process of the cluster by its id; return the names of those that had to be killed.

        Raises TabrankError if one of them cannot be ended.
        """
        # The raylet first: it ends its workers. Ray's state last: the others need it to end well.
        others = {_name(process) for process in self.processes()} - {*NODE}
        for names in ({RAYLET}, others, {GCS}):
            asked = [process for process in self.processes() if _name(process) in names]
            for process in asked:
                with contextlib.suppress(psutil.Error):
                    process.terminate()
            psutil.wait_procs(asked, timeout=STOP_S)
        killed = []
        deadline = time.monotonic() + GRACE_S
        # Again and again, because a dying parent may have just started a child.
        while left := self.processes():
            for process in left:
                killed.append(_name(process))
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=2.0)
            if time.monotonic() > deadline:
                raise TabrankError(f"process {left[0].pid} cannot be ended; end it, then try again")
        return killed

    @contextlib.contextmanager
    def locked(self, timeout_s: float) -> Iterator[None]:
        """Hold the folder, so that two commands do not start and stop one service at once."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout_s
        with (self.path / "lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TabrankError(f"{self.path}: another up or down is at work here") from None
                    time.sleep(POLL_S)
            yield


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""
