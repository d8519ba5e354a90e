"""The three services that are measured, as commands: tabrank and its two rivals."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loadtest.errors import LoadtestError
from loadtest.targets.workspace import Workspace

PORTS = range(20_000, 30_000)
OUR_APPLICATION = "serve.app:build"


@dataclass(frozen=True)
class Service:
    """How a service is started on its port, and ended: by `stop`, or by SIGTERM to what `start` started.

    `temp`: a folder that it may fill, and that is removed with it.
    """

    name: str
    port: int
    start: Sequence[str]
    environment: Mapping[str, str]
    stop: Sequence[str] = ()
    temp: Path | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"


def tabrank(work: Workspace, config: Path) -> Service:
    """The service of a `cluster.yaml`, with the workspace's store and models and the model arm at 100 %.

    Raises:
        LoadtestError: if the file is not such a one.
    """
    port = free_port()
    document = _read(config)
    application = _only_application(config, document)
    arguments = application.setdefault("args", {})
    if arguments.get("surface") != "spaces":
        raise LoadtestError(
            f"--config {config}: its surface is {arguments.get('surface')!r}; the benchmark's log is one of 'spaces'"
        )
    served = work.path / "served"
    shutil.rmtree(served, ignore_errors=True)  # of the run before: millions of rankings
    arguments |= {
        "store": f"lmdb:{work.data.name}/store",
        "models": f"{work.data.name}/models",
        "log": served.name,
    }
    document["http_options"] = {**document.get("http_options", {}), "host": "127.0.0.1", "port": port}
    for deployment in application.get("deployments", []):
        _all_to_the_model(config, deployment.get("user_config") or {})
    file, run = work.path.resolve() / "cluster.yaml", str(work.path.resolve() / "run")
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    serve = (sys.executable, "-m", "serve")
    environment = {"RAY_AUTH_MODE": "disabled", **os.environ}
    return Service(
        "tabrank",
        port,
        (*serve, "up", str(file), "--run", run),
        environment,
        stop=(*serve, "down", "--run", run),
    )


def fastapi(work: Workspace) -> Service:
    """Plain FastAPI on uvicorn, one worker a core."""
    port = free_port()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    uvicorn = ("uvicorn", "loadtest.targets.rivals.plain:app", "--host", "127.0.0.1", "--port", str(port))
    speed = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")
    # Longer than its clients keep theirs, as behind any load balancer: at the default of 5 s it closes
    # connections on which a request is already under way.
    kept = ("--timeout-keep-alive", "75")
    environment = {**os.environ, "TABRANK_RIVAL_WORK": str(work.data.resolve())}
    start = (sys.executable, "-m", *uvicorn, "--workers", str(cores), *speed, *kept)
    return Service("fastapi", port, start, environment)


def idiomatic(work: Workspace) -> Service:
    """Ray Serve as its guide teaches, with nothing in its environment that changes a default but what is said."""
    port = free_port()
    temp = Path("/tmp") / f"rival-{work.id}"  # short: the path of a Unix socket ends at 107 characters
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "TABRANK_RIVAL_WORK": str(work.data.resolve()),
        "RAY_AUTH_MODE": "disabled",  # a token would cost each call 0.2 ms
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # not behind the load generator on the same cores
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all of Ray's own ports on 127.0.0.1
    }
    start = (sys.executable, "-m", "loadtest.targets.rivals.idiomatic", str(port), str(temp))
    return Service("idiomatic", port, start, environment, temp=temp)


def free_port() -> int:
    """A port of 127.0.0.1 that is free now, of those that neither outgoing connections nor Ray's workers take."""
    ports = list(PORTS)
    random.shuffle(ports)
    for port in ports:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise LoadtestError(
        f"no port from {PORTS.start} to {PORTS.stop - 1} of 127.0.0.1 is free; stop what listens there"
    )


def _read(config: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadtestError(
            f"--config {config}: cannot be read ({error.strerror}); name a cluster.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LoadtestError(f"--config {config}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise LoadtestError(f"--config {config}: holds no mapping; name a cluster.yaml")
    return document


def _only_application(config: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    applications = document.get("applications")
    ours = [a for a in applications or [] if isinstance(a, dict) and a.get("import_path") == OUR_APPLICATION]
    if len(ours) != 1 or ours != applications:
        raise LoadtestError(f"--config {config}: must hold exactly one application, of {OUR_APPLICATION}")
    application: dict[str, Any] = ours[0]
    return application


def _all_to_the_model(config: Path, user_config: dict[str, Any]) -> None:
    experiment = user_config.get("experiment", {})
    arms = experiment.get("arms", {})
    if arms and sum(arm.get("scorer") == "current" for arm in arms.values()) != 1:
        raise LoadtestError(
            f"--config {config}: one arm must have the scorer 'current', to be given all viewers"
        )
    for arm in arms.values():
        arm["share"] = 1.0 if arm["scorer"] == "current" else 0.0
        if "explore" in arm:
            arm["explore"] = 0.0
    if "holdout" in experiment:
        experiment["holdout"] = 0.0
