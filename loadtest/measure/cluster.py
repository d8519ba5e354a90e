"""Count replicas and nodes during a load, in the run folder of `serve up`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loadtest.errors import LoadtestError
from serve.contract.commands import RUN

# Time between two samples: a timeline has one row per second.
PERIOD_S = 1.0
# Errors of reading a cluster that has no Serve, or whose Serve starts or stops.
UNREADABLE_ERRORS = (LoadtestError, OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class ClusterSample:
    """Running replicas by deployment, and live nodes, at `at_s` seconds of the load.

    `nodes` is None if the service does not report them. `whole` is True if all required replicas
    ran.
    """

    at_s: float
    replicas: Mapping[str, int]
    nodes: int | None
    whole: bool = True


# Reader of a cluster. It returns the running replicas by deployment, and the number of nodes.
Look = Callable[[], tuple[Mapping[str, int], int | None]]


def find_cluster(url: str) -> Look | None:
    """Return the reader of `var/run` if its service is the one at `url`, and otherwise None."""
    base = (read_service(RUN).get("url") or "").rstrip("/")
    # The service's URL has no path, but `url` may have that of an application.
    ours = bool(base) and f"{url.rstrip('/')}/".startswith(f"{base}/")
    return partial(look_at_folder, RUN) if ours else None


def read_service(folder: Path) -> dict[str, Any]:
    """Return the service state that `serve up` wrote; empty while it is missing or unreadable."""
    try:
        found = json.loads((folder / "service.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def replica_states(folder: Path) -> dict[str, dict[str, int]]:
    """Return the number of replicas by deployment and state, such as `{"Scorer": {"RUNNING": 2}}`.

    The numbers are those that the service reported last in its run folder.
    """
    applications = read_service(folder).get("applications", {})
    return {name: deployment["replicas"] for name, deployment in deployments(applications)}


def look_at_folder(folder: Path) -> tuple[Mapping[str, int], int | None]:
    """Return the running replicas by deployment, and the number of live nodes, of a run folder."""
    nodes = read_service(folder).get("nodes")
    running = {name: states.get("RUNNING", 0) for name, states in replica_states(folder).items()}
    return running, None if nodes is None else sum(bool(node["alive"]) for node in nodes)


def deployments(applications: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the deployments by name.

    If there are several applications, a name has the form `application_deployment`.
    """
    several = len(applications) > 1
    return [
        (f"{application}_{name}" if several else name, deployment)
        for application, found in applications.items()
        for name, deployment in found["deployments"].items()
    ]
