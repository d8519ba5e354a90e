"""Cluster of two Ray nodes on 127.0.0.1 that share no folder, with the environment of a cluster."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import httpx
import psutil
import yaml

from serve.operate.host.environment import HAPROXY_PLACES, free_ports, rendered_environment
from serve.operate.host.run_folder import kill, processes_with

MARKER = "TABRANK_TEST_NODE"
ROOT = Path(__file__).parents[2]
START_S = 300.0
NODES = ("head", "worker")
# The worker starts with this program, because `ray start --address` would replace 127.0.0.1 by the
# machine's external address.
WORKER = """
import sys
from ray._private.node import Node
from ray._private.parameter import RayParams
about = dict(node_ip_address="127.0.0.1", gcs_address=sys.argv[1], num_cpus=2, labels={"pool": "worker"})
sizes = dict(object_store_memory=128 << 20, dashboard_agent_listen_port=0)
Node(RayParams(**about, **sizes), head=False, shutdown_at_exit=False, spawn_reaper=False)
"""
# The document is deployed by this program, because Ray's own `serve deploy` needs the dashboard,
# which takes a minute to start on a busy machine.
DEPLOY = """
import sys, ray, yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
document = yaml.safe_load(open(sys.argv[2]))
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
serve.start(proxy_location=document["proxy_location"], http_options=document["http_options"])
_get_global_client().deploy_apps(ServeDeploySchema.model_validate(document))
"""


class TwoNodes:
    """Head and worker, each with its own home and cache. `urls` are the URLs of their ingresses."""

    def __init__(self, folder: Path, document: dict, environment: dict[str, str]) -> None:
        self.folder = folder
        # The path is short, because that of a Unix socket may not be long.
        self._temp = Path(tempfile.mkdtemp(prefix="tr2-", dir="/tmp"))
        self._gcs, client, head, worker = free_ports(4)
        self.urls = {"head": f"http://127.0.0.1:{head}", "worker": f"http://127.0.0.1:{worker}"}
        self.document = document
        document["http_options"] |= {"port": head, "host": "127.0.0.1"}
        document["proxy_location"] = "EveryNode"
        token, self.environments = secrets.token_hex(32), {}
        for node in NODES:
            home = folder / node
            home.mkdir(parents=True)
            places = dict(zip(("stats", "metrics", "fallback"), free_ports(3), strict=True))
            places["sockets"] = self._temp / node[0]
            (self._temp / node[0]).mkdir()
            self.environments[node] = {
                **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
                **rendered_environment(str(home)),
                **{name: value.format(**places) for name, value in HAPROXY_PLACES.items()},
                **environment,
                MARKER: f"{self._temp.name}-{node}",
                "SPT_NOENV": "1",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": token,
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                # On a busy machine an agent needs longer than by default.
                "RAY_agent_register_timeout_ms": "300000",
                "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(worker),
                "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
                "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
                "PYTHONPATH": str(ROOT),
                "XDG_CACHE_HOME": str(home / "cache"),
            }
        ray = str(Path(sys.executable).with_name("ray"))
        self._head = [ray, "start", "--head", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
        self._head += [f"--port={self._gcs}", f"--ray-client-server-port={client}", "--num-cpus=2"]
        self._head += ["--object-store-memory=134217728", "--labels=pool=head", "--include-dashboard=false"]
        self._head += ["--dashboard-agent-listen-port=0", f"--temp-dir={self._temp / 'ray'}"]

    def start(self) -> None:
        """Start both nodes and deploy the document; return once each ingress is ready."""
        self._run("head", self._head)
        self.start_worker()
        file = self.folder / "head" / "cluster.yaml"
        file.write_text(yaml.safe_dump(self.document))
        self._run("head", [sys.executable, "-c", DEPLOY, f"127.0.0.1:{self._gcs}", str(file)])
        for url in self.urls.values():
            self.until(lambda url=url: httpx.get(f"{url}/readyz", timeout=5).status_code == 200)

    def start_worker(self) -> None:
        # The worker's address differs from the head's. Otherwise Ray would take it for a second
        # head.
        self._run("worker", [sys.executable, "-c", WORKER, f"localhost:{self._gcs}"])

    def kill_worker(self) -> None:
        """Kill every process of the worker at once."""
        kill(partial(self.processes, "worker"))

    def processes(self, *nodes: str) -> list[psutil.Process]:
        return [
            one for node in nodes or NODES for one in processes_with(MARKER, self.environments[node][MARKER])
        ]

    def find(self, title: str, *nodes: str) -> list[psutil.Process]:
        """Return the processes whose title begins with `title`, the oldest first."""
        found = []
        for process in self.processes(*nodes):
            try:
                if (process.cmdline() or [""])[0].startswith(title):
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=psutil.Process.create_time)

    def replicas(self, name: str, *nodes: str) -> list[psutil.Process]:
        return self.find(f"ray::ServeReplica:spaces:{name}", *nodes)

    def until(self, is_so, seconds: float = START_S) -> float:
        """Wait until `is_so` returns True; return the seconds that it took."""
        begun = time.monotonic()
        while True:
            try:
                if is_so():
                    return time.monotonic() - begun
            except (httpx.HTTPError, ValueError, KeyError):
                pass
            assert time.monotonic() - begun < seconds, f"not so within {seconds:g} s"
            time.sleep(0.1)

    def stop(self) -> None:
        kill(self.processes)
        shutil.rmtree(self._temp, ignore_errors=True)

    def _run(self, node: str, command: list[str]) -> None:
        log = self.folder / f"{node}.log"
        with log.open("ab") as file:
            output = {"stdout": file, "stderr": file, "stdin": subprocess.DEVNULL}
            done = subprocess.run(
                command,
                env=self.environments[node],
                cwd=self.folder / node,
                **output,
                check=False,
                timeout=START_S,
            )
        assert done.returncode == 0, log.read_text()[-3_000:]
