"""The service that is hurt: its processes by their role, its files, and how many replicas run."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from loadtest.commands import run_command
from loadtest.errors import LoadtestError
from loadtest.measure.cluster import deployments, read_service
from loadtest.targets.processes import marked

CONTROLLER, MANAGER, HAPROXY = "ray::ServeController", "ray::HAProxyManager", "haproxy"
REPLICA = "ray::ServeReplica:spaces:"
IDLE = "ray::IDLE"


@dataclass(frozen=True)
class Target:
    """A running service: `folder` holds its `cluster.yaml`, run folder, and its own copies of store and models."""

    url: str
    folder: Path
    marker: str

    @property
    def file(self) -> Path:
        """Its `cluster.yaml`."""
        return self.folder / "cluster.yaml"

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.folder / "run"

    def find(self, role: str) -> list[psutil.Process]:
        """Its processes whose title begins so, the oldest first."""
        found = [process for process in marked(self.marker) if title(process).startswith(role)]
        return sorted(found, key=lambda process: process.create_time())

    def one(self, role: str) -> psutil.Process:
        """The oldest of them; LoadtestError if there is none."""
        found = self.find(role)
        if not found:
            raise LoadtestError(f"the service has no process {role}; is it up?")
        return found[0]

    def replica(self, deployment: str) -> psutil.Process:
        """A replica's process."""
        return self.one(REPLICA + deployment)

    def roles(self) -> Counter[str]:
        """How many processes of each title there are, those without a task left out."""
        names = Counter(title(process).partition(".")[0] for process in marked(self.marker))
        return Counter({name: number for name, number in names.items() if name and name != IDLE})

    def replicas(self) -> dict[str, dict[str, int]]:
        """How many of each deployment there are in each state, as the service itself says."""
        return {
            name: deployment["replicas"]
            for name, deployment in deployments(read_service(self.run).get("applications", {}))
        }

    def at_full_strength(self, wanted: Mapping[str, int]) -> bool:
        """Whether exactly these replicas run, and none is on its way."""
        there = self.replicas()
        return all(there.get(name) == {"RUNNING": number} for name, number in wanted.items())

    def document(self) -> dict[str, Any]:
        """Its `cluster.yaml`."""
        document: dict[str, Any] = yaml.safe_load(self.file.read_text())
        return document

    def deploy(self, document: Mapping[str, Any]) -> None:
        """Bring what runs to a changed document, in place."""
        self.file.write_text(yaml.safe_dump(dict(document), sort_keys=False))
        run_command("serve", "up", str(self.file), "--run", str(self.run), log=self.folder / "chaos.log")


def title(process: psutil.Process) -> str:
    """A process's title, empty where it has ended; a Ray worker's says what it runs."""
    with contextlib.suppress(psutil.Error):
        line = process.cmdline()
        if line:
            return line[0] if line[0].startswith("ray::") else os.path.basename(line[0])
    return ""


def signalled(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal; LoadtestError if the process had ended already."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        raise LoadtestError(f"process {process.pid} ended before it could be hurt") from None
