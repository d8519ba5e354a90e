"""Count replicas and nodes during a load, in the run folder of `serve up` or on Ray's dashboard."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loadtest.errors import LoadtestError
from loadtest.measure.service import ask

DEFAULT_RUN = Path("var/run")
APPLICATIONS = "/api/serve/applications/"
NODES = "/api/v0/nodes?detail=true&limit=10000"
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


def find_cluster(named: str | None, url: str) -> Look | None:
    """Return the reader of the named cluster.

    Without a name, return that of `var/run` if its service is the one at `url`, and otherwise None.

    Raises:
        LoadtestError: if the named cluster is not readable.
    """
    if named is None:
        base = (read_service(DEFAULT_RUN).get("url") or "").rstrip("/")
        # The service's URL has no path, but `url` may have that of an application.
        ours = bool(base) and f"{url.rstrip('/')}/".startswith(f"{base}/")
        return partial(look_at_folder, DEFAULT_RUN) if ours else None
    is_url = named.startswith(("http://", "https://"))
    look: Look = partial(look_at_dashboard, named) if is_url else partial(look_at_folder, Path(named))
    try:
        replicas, _ = look()
    except UNREADABLE_ERRORS as error:
        raise LoadtestError(
            f"--cluster {named}: found no Ray Serve there ({error}); name a run folder of `serve up`, "
            "or the URL of a Ray dashboard, such as http://127.0.0.1:8265"
        ) from None
    if not replicas:
        raise LoadtestError(f"--cluster {named}: found no deployment there; check that the service is up")
    return look


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


def look_at_dashboard(url: str) -> tuple[Mapping[str, int], int | None]:
    """Return the running replicas by deployment, and the number of live nodes, from a dashboard.

    Raises:
        LoadtestError: if the dashboard's REST API does not answer.
    """
    replicas = {
        name: sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
        for name, deployment in deployments(_get(url, APPLICATIONS)["applications"])
    }
    nodes = _get(url, NODES)["data"]["result"]["result"]
    return replicas, sum(node["state"] == "ALIVE" for node in nodes)


def _get(url: str, path: str) -> Any:
    token = os.environ.get("RAY_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    status, body = ask(url.rstrip("/"), path, headers=headers)
    if status != http.client.OK:
        raise LoadtestError(f"{path} answered {status}")
    return json.loads(body)


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
