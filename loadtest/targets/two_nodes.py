"""Cluster of two nodes on one machine: a head that can be killed, and a worker with all replicas.

The worker also has the ingress. Both nodes have the environment that `serve render kubernetes`
gives its pods; a folder on disk keeps the head's state, instead of Redis. Every process of a node
has the node's marker in its environment, and is ended by its id.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.measure.cluster import Dashboard, deployments
from loadtest.targets.fake_cluster import (
    FakeCluster,
    HeadPorts,
    cluster_folder,
    node_environment,
    run_logged,
    start_head,
)
from loadtest.targets.processes import MARKER, end_marked
from loadtest.targets.services import write_document
from serve.operate.host.environment import free_ports, rendered_environment

# CPUs of each node: the head has room only for the controller and its own HAProxy.
NODES = {"head": 0, "workers": 2}
# The head stands for another machine, so it must not take CPU from the worker.
HEAD_NICE = "19"
# Replica: Serve's id, the actor's id, the process id.
Identity = tuple[str, str, int]


@dataclass(frozen=True)
class TwoNodes:
    """Running cluster; `url` is the worker's HAProxy, `cluster` the client of the head."""

    url: str
    cluster: FakeCluster
    head_command: tuple[str, ...]
    # Environment by node.
    environments: Mapping[str, Mapping[str, str]] = field(repr=False)

    def marker(self, node: str) -> str:
        """Return the marker of each process of a node."""
        return self.environments[node][MARKER]

    def start_head(self) -> None:
        """Start or restart the head, on the same port and with the same state."""
        run_logged(list(self.head_command), self.environments["head"], self.cluster.folder / "head.log")

    def kill_head(self) -> None:
        """Kill every process of the head with `kill -9`."""
        end_marked(self.marker("head"))

    def deploy(self, document: Mapping[str, Any]) -> None:
        """Deploy a changed `cluster.yaml` with `serve deploy`."""
        config = Path(self.environments["workers"]["TABRANK_HOME"]) / "cluster.yaml"
        write_document(config, document)
        self.cluster.deploy(config)

    def identities(self) -> dict[str, list[Identity]]:
        """Return the running replicas by deployment; empty while the head is unreachable."""
        return {
            name: sorted(
                (one["replica_id"], one["actor_id"], one["pid"])
                for one in deployment["replicas"]
                if one["state"] == "RUNNING"
            )
            for name, deployment in deployments(self.cluster.applications())
        }

    def is_running(self) -> bool:
        """Return whether all applications are RUNNING and each node's proxy is HEALTHY."""
        statuses = {application["status"] for application in self.cluster.applications().values()}
        return statuses == {"RUNNING"} and self.cluster.rest.proxies() == ["HEALTHY"] * len(NODES)


@contextlib.contextmanager
def two_nodes(config: Path) -> Iterator[TwoNodes]:
    """Start both nodes, deploy the file, and end every process afterwards.

    The file's `http_options.port` is the head's ingress; the worker has another port. Paths in the
    file are relative to its folder.

    Raises:
        LoadtestError: with the reason, if the cluster does not start.
    """
    with cluster_folder("tabrank-two-", NODES) as (folder, markers):
        nodes, gcs = _described(config.resolve(), folder, markers)
        nodes.start_head()
        # Use another host name than the head's, or `ray start` takes the worker's raylet for a
        # running head.
        command = [sys.executable, "-m", "loadtest.targets.worker_node", f"localhost:{gcs}"]
        command += [str(NODES["workers"])]
        run_logged(command, nodes.environments["workers"], folder / "worker.log")
        nodes.cluster.deploy(config)
        nodes.cluster.wait_until_running()
        yield nodes


def _described(config: Path, folder: Path, markers: Mapping[str, str]) -> tuple[TwoNodes, int]:
    *head, ingress = free_ports(4)
    ports = HeadPorts(*head)
    token = secrets.token_hex(32)
    shared = rendered_environment(str(config.parent))
    # By default Ray keeps its state in memory, and a worker gives up a minute after the head falls
    # silent.
    kept = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}
    own = {"head": kept, "workers": {"RAY_gcs_rpc_server_reconnect_timeout_s": "3600"}}
    environments = {
        node: {
            **node_environment(shared | own[node], folder / node[0], markers[node], token),
            "PYTHONPATH": os.pathsep.join([str(config.parent), *filter(None, sys.path)]),
            # Both nodes share an address, so their proxies need different ports.
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(ingress),
        }
        for node in NODES
    }
    start = start_head(folder, ports, NODES["head"])
    rest = Dashboard(f"http://127.0.0.1:{ports.dashboard}", token)
    cluster = FakeCluster(folder, rest, environments["head"])
    command = ("nice", "-n", HEAD_NICE, *start)
    return TwoNodes(f"http://127.0.0.1:{ingress}", cluster, command, environments), ports.gcs
