"""What runs beside the load: replicas and nodes, from the run folder of `serve up` or from Ray's dashboard."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from loadtest.errors import LoadtestError
from loadtest.measure.service import ask

DEFAULT_RUN = Path("var/run")
APPLICATIONS = "/api/serve/applications/"
NODES = "/api/v0/nodes?detail=true&limit=10000"
PERIOD_S = 1.0
UNTOLD = (LoadtestError, OSError, ValueError, KeyError, TypeError, AttributeError)
"""What a look ends in where there is no Serve, or one that is only beginning or ending."""


@dataclass(frozen=True)
class Sample:
    """How many replicas of each deployment ran at a moment, and how many nodes lived; None: not told."""

    at_s: float
    replicas: Mapping[str, int]
    nodes: int | None


Look = Callable[[], tuple[Mapping[str, int], int | None]]
"""Replicas that run, by deployment, and nodes."""


@dataclass
class Watch:
    """Looks at a cluster once a second of a run, which has `seconds` after its warm-up, until it is over."""

    look: Look
    warmup_s: float
    seconds: float
    samples: list[Sample] = field(default_factory=list)

    def __call__(self) -> None:
        """Look until the run is over; where nothing can be seen at a moment, there is no sample of it."""
        begun, number = perf_counter(), 0
        while (at_s := number * PERIOD_S) <= self.warmup_s + self.seconds:
            time.sleep(max(0.0, begun + at_s - perf_counter()))
            try:
                replicas, nodes = self.look()
            except UNTOLD:
                replicas = {}
            if replicas:
                self.samples.append(Sample(perf_counter() - begun - self.warmup_s, replicas, nodes))
            number += 1


def find_cluster(named: str | None, url: str) -> Look | None:
    """How to look at the cluster that is named; without a name at that of `var/run`, if it serves this URL.

    Raises:
        LoadtestError: if there is nothing to be seen at the name.
    """
    if named is None:
        found = read_service(DEFAULT_RUN)
        ours = found.get("url") is not None and found["url"].rstrip("/") == url.rstrip("/")
        return _of_folder(DEFAULT_RUN) if ours else None
    if named.startswith(("http://", "https://")):
        look: Look = Dashboard(named, os.environ.get("RAY_AUTH_TOKEN")).look
    else:
        look = _of_folder(Path(named))
    try:
        replicas, _ = look()
    except UNTOLD as error:
        raise LoadtestError(
            f"--cluster {named}: no Ray Serve is to be seen there ({error}); "
            "name a run folder of `serve up`, or a dashboard's URL such as http://127.0.0.1:8265"
        ) from None
    if not replicas:
        raise LoadtestError(f"--cluster {named}: no deployment is known there; is the service up?")
    return look


def read_service(folder: Path) -> dict[str, Any]:
    """What `serve up` tells in a run folder; empty while it cannot be told."""
    try:
        found = json.loads((folder / "service.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_folder(folder: Path) -> Look:
    def look() -> tuple[Mapping[str, int], int | None]:
        found = read_service(folder)
        nodes = found.get("nodes")
        running = {
            name: int(deployment["replicas"].get("RUNNING", 0))
            for name, deployment in deployments(found.get("applications", {}))
        }
        return running, None if nodes is None else sum(bool(node["alive"]) for node in nodes)

    return look


@dataclass(frozen=True)
class Dashboard:
    """Ray's own REST, which may want a token; LoadtestError where it does not answer."""

    url: str
    token: str | None = field(default=None, repr=False)

    def look(self) -> tuple[Mapping[str, int], int | None]:
        """Replicas that run, by deployment, and nodes."""
        return self.replicas(), len(self.nodes())

    def applications(self) -> Mapping[str, Any]:
        """Serve's own state of each application, by name."""
        found: Mapping[str, Any] = self._get(APPLICATIONS)["applications"]
        return found

    def proxies(self) -> list[str]:
        """How each node's proxy is, in Serve's own word."""
        return [proxy["status"] for proxy in self._get(APPLICATIONS)["proxies"].values()]

    def replicas(self) -> dict[str, int]:
        """Replicas that run, by deployment."""
        return {
            name: sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
            for name, deployment in deployments(self.applications())
        }

    def nodes(self) -> list[Mapping[str, Any]]:
        """Nodes that live."""
        nodes = self._get(NODES)["data"]["result"]["result"]
        return [node for node in nodes if node["state"] == "ALIVE"]

    def _get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        status, said = ask(self.url.rstrip("/"), path, headers=headers)
        if status != http.client.OK:
            raise LoadtestError(f"{path} answers {status}")
        return json.loads(said)


def deployments(applications: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """By their names, with the application's before them where there are several."""
    several = len(applications) > 1
    return [
        (f"{application}_{name}" if several else name, deployment)
        for application, found in applications.items()
        for name, deployment in found["deployments"].items()
    ]
