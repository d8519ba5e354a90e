"""Ray cluster of several nodes on one machine, with the real autoscaler and fake nodes.

It uses Ray's fake multi-node provider. `python -m serve render launcher --provider fake` renders
the launcher file, and Ray's own `serve deploy` deploys the `cluster.yaml`. Every process has a
marker in its environment, and is ended by its id.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from loadtest.commands import last_lines
from loadtest.errors import LoadtestError
from loadtest.measure.cluster import UNREADABLE_ERRORS, Dashboard
from loadtest.targets.processes import MARKER, POLL_S, end_marked
from loadtest.targets.services import free_port

# The provider counts its nodes from this id.
HEAD_ID = "f" * 51 + "00000"
HEAD_TYPE = "ray.head.default"
START_S = 60.0
# Interval of the autoscaler's updates.
UPDATE_S = 1


@dataclass(frozen=True)
class FakeCluster:
    """Running cluster; `dashboard` is its address for `serve deploy` and REST, with `token`."""

    folder: Path
    dashboard: str
    token: str
    environment: Mapping[str, str] = field(repr=False)

    def deploy(self, config: Path) -> None:
        """Deploy an unchanged `cluster.yaml` with Ray's own command; return once it is accepted."""
        command = [installed_program("serve"), "deploy", "--address", self.dashboard, str(config)]
        run_logged(command, self.environment, self.folder / "deploy.log")

    def wait_until_running(self, timeout_s: float = START_S) -> None:
        """Wait until all applications are RUNNING.

        Raises:
            LoadtestError: with Serve's message, if one fails to deploy, or on timeout.
        """
        deadline = time.monotonic() + timeout_s
        statuses: Any = "nothing"
        while time.monotonic() < deadline:
            applications = self.applications()
            statuses = {name: app["status"] for name, app in applications.items()}
            if applications and set(statuses.values()) == {"RUNNING"}:
                return
            for name, app in applications.items():
                if app["status"] == "DEPLOY_FAILED":
                    raise LoadtestError(f"application {name!r} cannot be deployed: {app['message']}")
            time.sleep(POLL_S)
        raise LoadtestError(
            f"the applications are not running after {timeout_s:g} s: Serve reports {statuses}; see {self.folder}"
        )

    def applications(self) -> Mapping[str, Any]:
        """Return Serve's state of each application, by name; empty while unreadable."""
        try:
            return self.rest.applications()
        except UNREADABLE_ERRORS:
            return {}

    def proxies(self) -> list[str]:
        """Return Serve's status of each node's proxy; empty while unreadable."""
        try:
            return self.rest.proxies()
        except UNREADABLE_ERRORS:
            return []

    def replicas(self) -> dict[str, int]:
        """Return the running replicas by deployment; empty while unreadable."""
        try:
            return self.rest.replicas()
        except UNREADABLE_ERRORS:
            return {}

    def nodes(self) -> list[dict[str, Any]]:
        """Return the live nodes with `id`, `pool` and `head`; empty while unreadable."""
        try:
            found = self.rest.nodes()
        except UNREADABLE_ERRORS:
            return []
        return [
            {"id": node["node_id"], "pool": node["labels"].get("pool", ""), "head": node["is_head_node"]}
            for node in found
        ]

    @property
    def rest(self) -> Dashboard:
        """Return the client of its REST API."""
        return Dashboard(self.dashboard, self.token)


@contextlib.contextmanager
def fake_cluster(config: Path, *, idle_s: float = 5.0, deploy: bool = True) -> Iterator[FakeCluster]:
    """Start the cluster of a `cluster.yaml`, deploy the file, and end every process afterwards.

    `idle_s`: time that a node without a replica stays.

    Raises:
        LoadtestError: with the reason, if the cluster does not start.
    """
    # A short path: Unix socket paths have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="tabrank-fake-", dir="/tmp"))
    marker = folder.name
    try:
        cluster = _start(config.resolve(), folder, marker, idle_s)
        if deploy:
            cluster.deploy(config)
            cluster.wait_until_running()
        yield cluster
    finally:
        end_marked(marker)
        shutil.rmtree(folder, ignore_errors=True)


def _start(config: Path, folder: Path, marker: str, idle_s: float) -> FakeCluster:
    gcs, dashboard, client = free_ports(3)
    launcher = folder / "launcher.yaml"
    render = ["render", "launcher", str(config), "--provider", "fake", "--out", str(launcher)]
    options = ["--gcs-port", str(gcs), "--idle-minutes", str(idle_s / 60)]
    run_logged([sys.executable, "-m", "serve", *render, *options], os.environ, folder / "render.log")
    document = yaml.safe_load(launcher.read_text())
    environment = _environment(document, folder, marker)
    resources = document["available_node_types"][HEAD_TYPE]["resources"]
    command = [installed_program("ray"), "start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    command += [f"--autoscaling-config={launcher}", f"--temp-dir={folder / 'ray'}", "--labels=pool=head"]
    command += [f"--num-cpus={resources['CPU']}", f"--object-store-memory={resources['object_store_memory']}"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
    command += [
        "--dashboard-agent-listen-port=0",
        f"--ray-client-server-port={client}",
        "--disable-usage-stats",
    ]
    run_logged(command, environment, folder / "start.log")
    url = f"http://127.0.0.1:{dashboard}"
    return FakeCluster(folder, url, environment["RAY_AUTH_TOKEN"], environment)


def _environment(document: Mapping[str, Any], folder: Path, marker: str) -> dict[str, str]:
    """Return the rendered file's environment, with settings for a second cluster on a machine."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **inherited,
        **document["metadata"]["environment"],
        MARKER: marker,
        # Keep the environment readable when a process sets its title.
        "SPT_NOENV": "1",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(document["metadata"]["config"]).parent), os.environ.get("PYTHONPATH")])
        ),
        "AUTOSCALER_UPDATE_INTERVAL_S": str(UPDATE_S),
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Bind all of Ray's own ports to 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Drain quickly: the only HAProxy is on this machine.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
        **haproxy_environment(folder / "h"),
    }


def haproxy_environment(sockets: Path) -> dict[str, str]:
    """Return HAProxy's ports and sockets for one more node on this machine.

    `sockets`: a folder with a short path.
    """
    stats, metrics, fallback = free_ports(3)
    return {
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(sockets / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(sockets / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(sockets / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(sockets),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(sockets / "server-state"),
    }


def free_ports(count: int) -> list[int]:
    """Return this many distinct free ports of 127.0.0.1."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def installed_program(name: str) -> str:
    """Return the path of a program that was installed with this Python."""
    return str(Path(sys.executable).parent / name)


def run_logged(command: list[str], environment: Mapping[str, str], log: Path) -> None:
    """Run a command to its end.

    Raises:
        LoadtestError: with its last lines, if it fails or takes longer than START_S.
    """
    with log.open("ab") as file:
        try:
            code = subprocess.run(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=START_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    if code != 0:
        how = f"did not end in {START_S:g} s" if code is None else "failed"
        name = f"{Path(command[0]).name} {command[1]}"
        raise LoadtestError(f"{name} {how}:\n  " + "\n  ".join(last_lines(log, 5)))
