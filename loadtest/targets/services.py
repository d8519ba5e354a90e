"""Commands and environments that start the measured services, and the `cluster.yaml` of tabrank."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loadtest.errors import LoadtestError
from loadtest.targets.workspace import Workspace
from serve.config.application import OUR_APPLICATION
from serve.config.reader import parse
from serve.operate.host.environment import free_ports
from serve.operate.host.machine import num_cores

Document = dict[str, Any]


@dataclass(frozen=True)
class TargetService:
    """Commands that start and stop a service. Without a `stop` command, SIGTERM ends it."""

    name: str
    url: str
    start: Sequence[str]
    environment: Mapping[str, str]
    stop: Sequence[str] = ()


def tabrank(work: Workspace, config: Path) -> TargetService:
    """Return the service of a `cluster.yaml`, changed for a benchmark.

    The changed file is written to the workspace. Its service has the workspace's store and models
    and a free port. All viewers get the model arm, without exploration or holdout. The number of
    replicas stays at `min_replicas`, because a replica that starts takes CPU from the measured
    ones.

    Raises:
        LoadtestError: if the file is not a usable `cluster.yaml`.
    """
    port = free_port()
    try:
        document = parse(config, config.read_bytes())
    except OSError as error:
        why = f"cannot be read ({error.strerror}); name a cluster.yaml"
        raise LoadtestError(f"--config {config}: {why}") from None
    applications = document.get("applications") or []
    if [isinstance(one, dict) and one.get("import_path") for one in applications] != [OUR_APPLICATION]:
        raise LoadtestError(f"--config {config}: it must hold exactly one application, of {OUR_APPLICATION}")
    [application] = applications
    arguments = application.setdefault("args", {})
    if (surface := arguments.get("surface")) != "spaces":
        raise LoadtestError(f"--config {config}: its surface is {surface!r}; it must be 'spaces'")
    served = work.path / "served"
    # The log of an earlier run may have millions of rankings.
    shutil.rmtree(served, ignore_errors=True)
    data = work.data.name
    arguments |= {"store": f"lmdb:{data}/store", "models": f"{data}/models", "log": served.name}
    document["http_options"] = {**document.get("http_options", {}), "host": "127.0.0.1", "port": port}
    for deployment in application.get("deployments", []):
        if isinstance(scaling := deployment.get("autoscaling_config"), dict):
            scaling["max_replicas"] = max(1, scaling.get("min_replicas", 1))
        _assign_all_to_model(config, deployment.get("user_config") or {})
    file, run = work.path.resolve() / "cluster.yaml", str(work.path.resolve() / "run")
    write_document(file, document)
    serve = (sys.executable, "-m", "serve")
    environment = {"RAY_AUTH_MODE": "disabled", **os.environ}
    start, stop = (*serve, "up", str(file), "--run", run), (*serve, "down", "--run", run)
    return TargetService("tabrank", f"http://127.0.0.1:{port}", start, environment, stop)


def fastapi(work: Workspace) -> TargetService:
    """Return plain FastAPI on uvicorn, with one worker per core."""
    port = free_port()
    uvicorn = ("uvicorn", "loadtest.targets.rival:app", "--host", "127.0.0.1", "--port", str(port))
    speed = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")
    # A server must keep idle connections for longer than its clients do. With its default of 5 s
    # uvicorn would close connections on which a request is already on its way.
    keep_alive = ("--timeout-keep-alive", "75")
    environment = {**os.environ, "TABRANK_RIVAL_WORK": str(work.data.resolve())}
    start = (sys.executable, "-m", *uvicorn, "--workers", str(num_cores()), *speed, *keep_alive)
    return TargetService("fastapi", f"http://127.0.0.1:{port}", start, environment)


def free_port() -> int:
    """Return a free port that neither outgoing connections nor Ray's workers will take."""
    return free_ports(1)[0]


def _assign_all_to_model(config: Path, user_config: dict[str, Any]) -> None:
    experiment = user_config.get("experiment", {})
    arms = experiment.get("arms", {})
    if arms and sum(arm.get("scorer") == "current" for arm in arms.values()) != 1:
        raise LoadtestError(f"--config {config}: exactly one arm must have the scorer 'current'")
    for arm in arms.values():
        arm["share"] = 1.0 if arm["scorer"] == "current" else 0.0
        if "explore" in arm:
            arm["explore"] = 0.0
    if "holdout" in experiment:
        experiment["holdout"] = 0.0


def read_document(file: Path) -> Document:
    """Return the content of a YAML file."""
    document: Document = yaml.safe_load(file.read_text())
    return document


def write_document(file: Path, document: Mapping[str, Any]) -> None:
    """Write a document as YAML."""
    file.write_text(yaml.safe_dump(dict(document), sort_keys=False))


def deployments_of(document: Document) -> dict[str, Document]:
    """Return the deployments that the only application of a document declares, by name."""
    declared = document["applications"][0].get("deployments", [])
    return {deployment.get("name", ""): deployment for deployment in declared}
