"""Two nodes on one machine: a head that can be killed and started again, a worker with all replicas and the way in.

Their environments are read from what `python -m serve render launcher` writes for machines of one's own: what is
proven is what is rendered. Every process of a node carries the node's marker, and is ended by its id.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from loadtest.errors import LoadtestError
from loadtest.targets.fake_cluster import (
    FakeCluster,
    beside_python,
    free_ports,
    of_its_own,
    run_logged,
)
from loadtest.targets.processes import MARKER, end_marked, marked

# Nothing but the controller, and the head's own HAProxy, has room on the head.
NODES = {
    "head": {"num_cpus": 0, "min_nodes": 1, "max_nodes": 1},
    "workers": {"num_cpus": 2, "min_nodes": 1, "max_nodes": 1},
}
# What `render` asks of several machines. None of it is used: here both nodes see the same files.
SHARED = {"store": "redis://store.internal:6379/0", "models": "/mnt/models", "log": "/mnt/log"}
MACHINES = ("--provider", "local", "--head-ip", "127.0.0.1", "--worker-ip", "127.0.0.1")
OBJECT_STORE_BYTES = 128 << 20
HEAD_NICE = "19"  # it is another machine in truth: here it gives way
Identity = tuple[str, str, int]  # of a replica: Serve's id, its actor's, its process's


@dataclass(frozen=True)
class TwoNodes:
    """A running cluster; `url` leads to the HAProxy of the worker, `cluster` to what the head tells."""

    url: str
    cluster: FakeCluster
    head_command: tuple[str, ...]
    environments: Mapping[str, Mapping[str, str]] = field(repr=False)  # by node

    def marker(self, node: str) -> str:
        """What each process of a node carries."""
        return self.environments[node][MARKER]

    def start_head(self) -> None:
        """Start it, or start it again: on the same port, over the same state."""
        run_logged(list(self.head_command), self.environments["head"], self.cluster.folder / "head.log")

    def kill_head(self) -> None:
        """Kill -9 every process of it."""
        end_marked(self.marker("head"))
        if left := marked(self.marker("head")):
            raise LoadtestError(f"process {left[0].pid} of the head cannot be killed")

    def deploy(self, document: Mapping[str, Any]) -> None:
        """Hand a changed `cluster.yaml` to the cluster by `serve deploy`."""
        config = Path(self.environments["workers"]["TABRANK_HOME"]) / "cluster.yaml"
        config.write_text(yaml.safe_dump(dict(document), sort_keys=False))
        self.cluster.deploy(config)

    def identities(self) -> dict[str, list[Identity]]:
        """Who the running replicas are, by deployment; empty while it cannot be told."""
        return {
            name: sorted(
                (one["replica_id"], one["actor_id"], one["pid"])
                for one in deployment["replicas"]
                if one["state"] == "RUNNING"
            )
            for application in self.cluster.applications().values()
            for name, deployment in application["deployments"].items()
        }

    def is_running(self) -> bool:
        """Whether Serve says so of every application, and of the proxy of each node that it is well."""
        statuses = {application["status"] for application in self.cluster.applications().values()}
        return statuses == {"RUNNING"} and self.cluster.proxies() == ["HEALTHY"] * len(NODES)


@contextlib.contextmanager
def two_nodes(config: Path) -> Iterator[TwoNodes]:
    """Start both nodes and deploy the file; end every process afterwards.

    The file's `http_options.port` is the head's own way in; the worker's is another. Paths in the file count from
    its folder. Raises LoadtestError with the reason if it does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="tabrank-two-", dir="/tmp"))  # short: a socket's path ends at 107
    markers = {node: f"{folder.name}-{node}" for node in NODES}
    try:
        nodes, gcs = _described(config.resolve(), folder, markers)
        nodes.start_head()
        # By another name than the head's own, or `ray start` takes the worker's raylet for a head that runs.
        command = [sys.executable, "-m", "loadtest.targets.worker_node", f"localhost:{gcs}"]
        command += [str(NODES["workers"]["num_cpus"])]
        run_logged(command, nodes.environments["workers"], folder / "worker.log")
        nodes.cluster.deploy(config)
        nodes.cluster.wait_until_running()
        yield nodes
    finally:
        for marker in markers.values():
            end_marked(marker)
        shutil.rmtree(folder, ignore_errors=True)


def rendered(config: Path, folder: Path) -> dict[str, dict[str, str]]:
    """What the launcher file of a `cluster.yaml` exports before `ray start` on each kind of node; `folder`: $HOME."""
    document = copy.deepcopy(yaml.safe_load(config.read_text()))
    for application in document["applications"]:
        arguments = application.get("args", {})
        arguments |= {name: place for name, place in SHARED.items() if name in arguments}
    declared, launcher = folder / "cluster.yaml", folder / "launcher.yaml"
    declared.write_text(yaml.safe_dump({**document, "nodes": NODES}, sort_keys=False))
    command = [sys.executable, "-m", "serve", "render", "launcher", str(declared), *MACHINES]
    run_logged([*command, "--out", str(launcher)], os.environ, folder / "render.log")
    starts = yaml.safe_load(launcher.read_text())
    keys = {"head": "head_start_ray_commands", "workers": "worker_start_ray_commands"}
    return {node: _exported(starts[key], folder) for node, key in keys.items()}


def _exported(commands: list[str], home: Path) -> dict[str, str]:
    found = re.search(r"export (.*?); ray start", "\n".join(commands))
    if found is None:
        raise LoadtestError("the rendered file does not start Ray as it did; see `serve render launcher`")
    words = shlex.split(found[1].replace("$HOME", str(home)))
    return dict(word.split("=", 1) for word in words)


def _described(config: Path, folder: Path, markers: Mapping[str, str]) -> tuple[TwoNodes, int]:
    gcs, dashboard, client, way_in = free_ports(4)
    token = secrets.token_hex(32)
    exports = rendered(config, folder)
    environments = {
        node: {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **exports[node],
            **of_its_own(folder / node[0]),
            MARKER: markers[node],
            "SPT_NOENV": "1",  # a set title keeps the environment
            "TABRANK_HOME": str(config.parent),
            "PYTHONPATH": os.pathsep.join([str(config.parent), *filter(None, sys.path)]),
            "RAY_AUTH_TOKEN": token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all of Ray's own ports on 127.0.0.1
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(way_in),  # two nodes, one address
        }
        for node in NODES
    }
    command = ["nice", "-n", HEAD_NICE, beside_python("ray"), "start", "--head"]
    command += ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}"]
    command += [
        f"--num-cpus={NODES['head']['num_cpus']}",
        "--labels=pool=head",
        f"--temp-dir={folder / 'ray'}",
    ]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--dashboard-agent-listen-port=0"]
    command += ["--disable-usage-stats"]
    cluster = FakeCluster(folder, f"http://127.0.0.1:{dashboard}", token, environments["head"])
    return TwoNodes(f"http://127.0.0.1:{way_in}", cluster, tuple(command), environments), gcs
