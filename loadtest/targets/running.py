"""Running service of a benchmark: its processes by role, its files, replicas and metrics."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from loadtest.commands import run_command
from loadtest.errors import LoadtestError
from loadtest.measure.cluster import read_service, replica_states
from loadtest.measure.service import DEFAULT_URL
from loadtest.targets.processes import marked, marker_of
from loadtest.targets.services import Document, TargetService, read_document, write_document
from loadtest.targets.workspace import Workspace
from serve.contract.commands import RUN
from serve.operate.host.state import UNWATCHED, status
from serve.operate.status.scrape import Page, read_pages

CONTROLLER, MANAGER, HAPROXY = "ray::ServeController", "ray::HAProxyManager", "haproxy"
REPLICA = "ray::ServeReplica:spaces:"
IDLE = "ray::IDLE"
# States, as `serve status` names them, in which a service answers.
SERVING = ("ready", "deploying", UNWATCHED)
# Part of a command line that tells which group a process belongs to: a deployment or a program.
GROUP = re.compile(rf"(?<={REPLICA})\w+|\bhaproxy\b|spawn_main")
PROGRAMS = {"haproxy": "HAProxy", "spawn_main": "uvicorn worker"}


@dataclass(frozen=True)
class Target:
    """Running service of a benchmark.

    `folder` holds its `cluster.yaml`, its run folder and its data. `marker` is the value of the
    environment variable that its processes have.
    """

    url: str
    folder: Path
    marker: str

    @classmethod
    def of(cls, work: Workspace, service: TargetService) -> Target:
        """Return the target that stands for a service of the workspace once it is started."""
        return cls(service.url, work.path.resolve(), marker_of(work, service))

    @property
    def file(self) -> Path:
        """Return the path of its `cluster.yaml`."""
        return self.folder / "cluster.yaml"

    @property
    def run(self) -> Path:
        """Return its run folder."""
        return self.folder / "run"

    def find(self, role: str) -> list[psutil.Process]:
        """Return its processes whose title starts with `role`, the oldest first."""
        found = [process for process in marked(self.marker) if title(process).startswith(role)]
        return sorted(found, key=lambda process: process.create_time())

    def one(self, role: str) -> psutil.Process:
        """Return the oldest process whose title starts with `role`.

        Raises:
            LoadtestError: if there is none.
        """
        found = self.find(role)
        if not found:
            raise LoadtestError(f"the service has no process {role!r}; check that it is up")
        return found[0]

    def roles(self) -> Counter[str]:
        """Count its processes by title, without idle Ray workers."""
        names = Counter(title(process).partition(".")[0] for process in marked(self.marker))
        return Counter({name: number for name, number in names.items() if name and name != IDLE})

    def at_full_strength(self, wanted: Mapping[str, int]) -> bool:
        """Return whether exactly this number of replicas runs, and none is starting or stopping.

        `wanted` maps a deployment to its number of replicas.
        """
        states = replica_states(self.run)
        return all(states.get(name) == {"RUNNING": number} for name, number in wanted.items())

    def metrics(self) -> Page:
        """Return the metrics of its page.

        They are empty if the address of the page is unknown or the page does not answer.
        """
        return read_pages([read_service(self.run).get("metrics_url", "")])

    def document(self) -> Document:
        """Return its parsed `cluster.yaml`."""
        return read_document(self.file)

    def deploy(self, document: Mapping[str, Any]) -> None:
        """Deploy a changed document in place."""
        write_document(self.file, document)
        run_command("serve", "up", str(self.file), "--run", str(self.run), log=self.folder / "deploy.log")


def running_url(url: str | None, option: str = "--url") -> str:
    """Return the URL of the service to load.

    It is `url` if this is given, otherwise that of the service in `var/run`, and DEFAULT_URL if no
    service was started there. `option` is the name of the option that gives `url`.

    Raises:
        LoadtestError: if the service in `var/run` does not answer, or has several applications.
    """
    if url:
        return url
    service = status(RUN)
    if (state := service.state) == "stopped":
        return DEFAULT_URL
    urls = list(service.our_urls.values())
    if state in SERVING and len(urls) == 1:
        return urls[0]
    why = f"has {', '.join(urls) or 'no ranking application'}" if state in SERVING else f"is {state}"
    raise LoadtestError(f"{RUN}: the service {why}; start one with `python -m serve up`, or use {option}")


def title(process: psutil.Process) -> str:
    """Return the title of a process, which is empty if the process has ended.

    The title of a Ray worker names its task, such as `ray::ServeReplica:spaces:Scorer`. That of any
    other process is the name of its program.
    """
    with contextlib.suppress(psutil.Error):
        if line := process.cmdline():
            return line[0] if line[0].startswith("ray::") else os.path.basename(line[0])
    return ""


def cpu_by_process(marker: str) -> Counter[tuple[str, int]]:
    """Return the CPU time in µs of each process of a service, by group and process id.

    A group is the name of a deployment, `HAProxy`, `uvicorn worker` or `rest`.
    """
    found = Counter[tuple[str, int]]()
    for process in marked(marker):
        with contextlib.suppress(psutil.Error):
            group = next(iter(GROUP.findall(" ".join(process.cmdline()))), "rest")
            found[PROGRAMS.get(group, group), process.pid] = round(sum(process.cpu_times()[:2]) * 1e6)
    return found


def send_signal(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process.

    Raises:
        LoadtestError: if the process has already ended.
    """
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        raise LoadtestError(f"process {process.pid} ended before the fault; run the test again") from None


def total(page: Page, name: str, **labels: str) -> float:
    """Return the sum of a metric over all series that have these labels."""
    wanted = labels.items()
    return sum(value for (metric, has), value in page.values.items() if metric == name and wanted <= has)


def gained(before: Page, after: Page, name: str, **labels: str) -> float:
    """Return by how much the `total` of a metric grew between two pages."""
    return total(after, name, **labels) - total(before, name, **labels)


def bound_of_share_ms(before: Page, after: Page, name: str, share: float) -> float | None:
    """Return an upper bound of a percentile, in ms, from a histogram in seconds.

    It is the smallest bound `le` that covers a share of the observations between two pages. The
    result is None if there were none.
    """
    bounds = {dict(has)["le"] for metric, has in after.values if metric == name}
    gains = {le: gained(before, after, name, le=le) for le in bounds}
    most = max(gains.values(), default=0.0)
    if most <= 0:
        return None
    return min(float(le) for le, count in gains.items() if count >= share * most) * 1e3
