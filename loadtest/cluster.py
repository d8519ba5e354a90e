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
from loadtest.service import ask

DEFAULT_RUN = Path("var/run")
APPLICATIONS = "/api/serve/applications/"
NODES = "/api/v0/nodes?limit=10000"
PERIOD_S = 1.0


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
            except (LoadtestError, OSError, ValueError, KeyError, TypeError, AttributeError):
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
        found = _service(DEFAULT_RUN)
        ours = found.get("url") is not None and found["url"].rstrip("/") == url.rstrip("/")
        return _of_folder(DEFAULT_RUN) if ours else None
    look = _of_dashboard(named) if named.startswith(("http://", "https://")) else _of_folder(Path(named))
    try:
        replicas, _ = look()
    except (LoadtestError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadtestError(
            f"--cluster {named}: no Ray Serve is to be seen there ({error}); "
            "name a run folder of `serve up`, or a dashboard's URL such as http://127.0.0.1:8265"
        ) from None
    if not replicas:
        raise LoadtestError(f"--cluster {named}: no deployment is known there; is the service up?")
    return look


def _service(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "service.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_folder(folder: Path) -> Look:
    def look() -> tuple[Mapping[str, int], int | None]:
        found = _service(folder)
        nodes = found.get("nodes")
        running = {
            name: int(deployment["replicas"].get("RUNNING", 0))
            for name, deployment in _deployments(found.get("applications", {}))
        }
        return running, None if nodes is None else sum(bool(node["alive"]) for node in nodes)

    return look


def _of_dashboard(url: str) -> Look:
    base = url.rstrip("/")

    def look() -> tuple[Mapping[str, int], int | None]:
        running = {
            name: sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
            for name, deployment in _deployments(_get(base, APPLICATIONS)["applications"])
        }
        nodes = _get(base, NODES)["data"]["result"]["result"]
        return running, sum(node["state"] == "ALIVE" for node in nodes)

    return look


def _deployments(applications: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """By their names, with the application's before them where there are several."""
    several = len(applications) > 1
    return [
        (f"{application}_{name}" if several else name, deployment)
        for application, found in applications.items()
        for name, deployment in found["deployments"].items()
    ]


def _get(base: str, path: str) -> Any:
    status, said = ask(base, path, headers=_token())
    if status != http.client.OK:
        raise LoadtestError(f"{path} answers {status}")
    return json.loads(said)


def _token() -> dict[str, str]:
    token = os.environ.get("RAY_AUTH_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
