"""The folder of one running service: its files, its lock, and how its processes are found.

Every process of the service's cluster inherits one environment variable that names the folder. So what a
kill -9 leaves behind is found in `/proc/<pid>/environ`, and no other cluster on the machine is ever touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from serve.errors import TabrankError
from serve.strict import refuse_file

MARKER = "TABRANK_CLUSTER"
RAY = "r"  # Ray opens its folder to every user: so it lies in one of ours, which lets nobody in
SUPERVISE = "--supervise"
POLL_S = 0.1


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
    def temp(self) -> Path:
        """Sockets and Ray's own logs: short, because the path of a Unix socket ends at 107 characters."""
        return Path("/tmp") / f"tabrank-{self.cluster_id}"

    @property
    def log(self) -> Path:
        """What the supervisor writes."""
        return self.path / "supervisor.log"

    @property
    def replica_logs(self) -> Path:
        """The folder of what replicas, controller and proxies write, a file each."""
        return self.temp / RAY / "session_latest" / "logs" / "serve"

    def service(self) -> dict[str, Any]:
        """The content of `service.json`, empty where there is none."""
        try:
            content = json.loads((self.path / "service.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, service: Mapping[str, Any]) -> None:
        """Replace `service.json` in one step: a reader sees the old or the new content."""
        fresh = self.path / "service.json.new"
        fresh.write_text(json.dumps(service, indent=1) + "\n")
        fresh.replace(self.path / "service.json")

    def deployed(self) -> dict[str, Any]:
        """The document that Serve was given last and that runs, with the pools of `nodes:`; empty if none does."""
        return self._yaml("deployed.yaml")

    def keep(self, document: Mapping[str, Any]) -> None:
        """Note the document that runs."""
        self._write_yaml("deployed.yaml", document)

    def want(self, config: Path, sha256: str, document: Mapping[str, Any]) -> None:
        """Leave for the supervisor what it is to deploy at the next SIGHUP, and the file that it is from."""
        self._write_yaml("wanted.yaml", {"config": str(config), "sha256": sha256, "document": dict(document)})

    def wanted(self) -> dict[str, Any]:
        """What `want` left."""
        return self._yaml("wanted.yaml")

    def forget(self) -> None:
        """Remove what tells of a service that runs no more."""
        for name in ("service.json", "deployed.yaml", "wanted.yaml"):
            (self.path / name).unlink(missing_ok=True)

    def _yaml(self, name: str) -> dict[str, Any]:
        try:
            content = yaml.safe_load((self.path / name).read_text())
        except (FileNotFoundError, ValueError, yaml.YAMLError):
            return {}
        return content if isinstance(content, dict) else {}

    def _write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        fresh = self.path / f"{name}.new"
        fresh.touch(mode=0o600)  # a store's password may be in it
        fresh.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))
        fresh.replace(self.path / name)

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

    @contextlib.contextmanager
    def locked(self, timeout_s: float) -> Iterator[None]:
        """Hold the folder, so that two commands do not start and stop one service at once."""
        self.path.mkdir(parents=True, exist_ok=True)
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
