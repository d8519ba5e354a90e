"""Ray cluster of several nodes on one machine, with the real autoscaler and fake nodes.

It uses Ray's fake multi-node provider, with the pools of a `cluster.yaml`, which Ray's own
`serve deploy` deploys. Every process has a marker in its environment, and is ended by its id.
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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from loadtest.commands import failure
from loadtest.errors import LoadtestError
from loadtest.measure.cluster import UNREADABLE_ERRORS, Dashboard
from loadtest.targets.processes import MARKER, POLL_S, end_marked
from loadtest.targets.services import write_document
from serve.config.pools import HEAD
from serve.config.reader import Config, read
from serve.operate.host.environment import free_ports, haproxy_places, rendered_environment

# The provider counts its nodes from this id.
HEAD_ID = "f" * 51 + "00000"
# The provider recognizes the head by this name only.
HEAD_TYPE = "ray.head.default"
# The service puts nothing into the object store.
OBJECT_STORE_BYTES = 128 << 20
# Ray's autoscaler reads these keys of its file although no fake node needs them.
UNUSED_TABLES = ("docker", "auth", "file_mounts")
UNUSED_LISTS = (
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
)
START_S = 60.0
# Interval of the autoscaler's updates.
UPDATE_S = 1


@dataclass(frozen=True)
class FakeCluster:
    """Running cluster; `rest` is the client of its dashboard, which also takes `serve deploy`."""

    folder: Path
    rest: Dashboard
    environment: Mapping[str, str] = field(repr=False)

    def deploy(self, config: Path) -> None:
        """Deploy an unchanged `cluster.yaml` with Ray's own command; return once it is accepted."""
        command = [installed_program("serve"), "deploy", "--address", self.rest.url, str(config)]
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


@contextlib.contextmanager
def fake_cluster(config: Path, *, idle_s: float) -> Iterator[FakeCluster]:
    """Start the cluster of a `cluster.yaml`, deploy the file, and end every process afterwards.

    `idle_s`: time that a node without a replica stays.

    Raises:
        LoadtestError: with the reason, if the cluster does not start.
    """
    with cluster_folder("tabrank-fake-", ("node",)) as (folder, markers):
        cluster = _start(config.resolve(), folder, markers["node"], idle_s)
        cluster.deploy(config)
        cluster.wait_until_running()
        yield cluster


@contextlib.contextmanager
def cluster_folder(prefix: str, nodes: Iterable[str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a new folder and a marker for each node; end the marked processes afterwards."""
    # A short path: Unix socket paths have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    markers = {node: f"{folder.name}-{node}" for node in nodes}
    try:
        yield folder, markers
    finally:
        for marker in markers.values():
            end_marked(marker)
        shutil.rmtree(folder, ignore_errors=True)


def _start(file: Path, folder: Path, marker: str, idle_s: float) -> FakeCluster:
    ports = HeadPorts(*free_ports(3))
    config = read(file)
    autoscaling = folder / "autoscaling.yaml"
    write_document(autoscaling, autoscaling_document(config, ports.gcs, idle_s))
    home = str(file.parent)
    environment = {
        **node_environment(rendered_environment(home), folder / "h", marker, secrets.token_hex(32)),
        "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")])),
        "AUTOSCALER_UPDATE_INTERVAL_S": str(UPDATE_S),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        # Drain quickly: the only HAProxy is on this machine.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
    }
    command = start_head(folder, ports, config.nodes[HEAD].num_cpus)
    run_logged([*command, f"--autoscaling-config={autoscaling}"], environment, folder / "start.log")
    rest = Dashboard(f"http://127.0.0.1:{ports.dashboard}", environment["RAY_AUTH_TOKEN"])
    return FakeCluster(folder, rest, environment)


def autoscaling_document(config: Config, gcs_port: int, idle_s: float) -> dict[str, Any]:
    """Return the file of Ray's autoscaler, with the pools of a `cluster.yaml` as fake nodes."""
    workers = {name: pool for name, pool in config.nodes.items() if name != HEAD}
    kinds = {
        HEAD_TYPE if name == HEAD else name: {
            "resources": {"CPU": pool.num_cpus, "object_store_memory": OBJECT_STORE_BYTES},
            "node_config": {},
            "labels": {"pool": name},
            "min_workers": pool.min_nodes if name in workers else 0,
            "max_workers": pool.max_nodes if name in workers else 0,
        }
        for name, pool in config.nodes.items()
    }
    return {
        "cluster_name": "tabrank",
        "max_workers": sum(pool.max_nodes for pool in workers.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{gcs_port}",
            # All nodes share one address. Without this no node is ever found idle.
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": kinds,
        "head_node_type": HEAD_TYPE,
        "file_mounts_sync_continuously": False,
        **{key: {} for key in UNUSED_TABLES},
        **{key: [] for key in UNUSED_LISTS},
    }


class HeadPorts(NamedTuple):
    """Ports of a head on 127.0.0.1."""

    gcs: int
    dashboard: int
    client: int


def start_head(folder: Path, ports: HeadPorts, num_cpus: int) -> list[str]:
    """Return the command that starts a head with its dashboard; its files go to `folder`."""
    return [
        *(installed_program("ray"), "start", "--head", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={ports.gcs}", f"--ray-client-server-port={ports.client}"),
        *(f"--num-cpus={num_cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}", "--labels=pool=head"),
        *(f"--dashboard-port={ports.dashboard}", "--dashboard-host=127.0.0.1", "--include-dashboard=true"),
        *("--dashboard-agent-listen-port=0", f"--temp-dir={folder / 'ray'}"),
    ]


def node_environment(rendered: Mapping[str, str], sockets: Path, marker: str, token: str) -> dict[str, str]:
    """Return the environment of one more node on this machine, from the one of a rendered cluster.

    `sockets`: a folder for HAProxy's files, with a short path.
    """
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        **rendered,
        **haproxy_places(sockets, *free_ports(3)),
        MARKER: marker,
        # Keep the environment readable when a process sets its title.
        "SPT_NOENV": "1",
        "RAY_AUTH_TOKEN": token,
        # Bind all of Ray's own ports to 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def installed_program(name: str) -> str:
    """Return the path of a program that was installed with this Python."""
    return str(Path(sys.executable).parent / name)


def run_logged(command: list[str], environment: Mapping[str, str], log: Path) -> None:
    """Run a command to its end.

    Raises:
        LoadtestError: with its last lines, if it fails or takes longer than START_S.
    """
    try:
        with log.open("ab") as file:
            subprocess.run(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=START_S,
                check=True,
            )
    except subprocess.SubprocessError as error:
        late = isinstance(error, subprocess.TimeoutExpired)
        how = f"did not end in {START_S:g} s" if late else "failed"
        name = f"{Path(command[0]).name} {command[1]}"
        raise failure(f"{name} {how}", log, 5) from None
