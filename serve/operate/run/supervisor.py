"""Supervisor of the service's local Ray cluster: starts it, deploys the file, watches, shuts down.

The cluster is no child of it: it outlives a supervisor that is killed, and the next one attaches to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from serve.config.reader import Config, read
from serve.contract.errors import TabrankError
from serve.operate.diff.running import SETTLE_S, application_of, cause, plain_nodes
from serve.operate.host.environment import HAPROXY_PORT, METRICS_PORT
from serve.operate.host.run_folder import POLL_S, RAY, RunFolder
from serve.operate.host.state import route, status_code
from serve.operate.status.restarts import Restarts

STATUS_PERIOD_S = 1.0
REPORT_MS = "RAY_metrics_report_interval_ms"  # Ray's, of how often a process hands its counters on
READY_WAIT_S = 3.0  # what answers but is not ready, such as a service without a store, is up all the same


class _Superseded(Exception):
    """Another deploy was asked for while one is under way."""


class Supervisor:
    """Serves one `cluster.yaml` until SIGTERM; SIGHUP deploys what the run folder wants, in place.

    All that others may know is in `service.json`; `error` there is the reason why the last deploy failed. It is
    written once a second, so that its age tells whether it still holds.
    """

    def __init__(self, config: Config, run: RunFolder, haproxy: bool) -> None:
        host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
        self._config = config
        self._run = run
        self._client: Any = None
        self._node: list[psutil.Process] = []
        self._restarts = Restarts()
        self._redeploy = False
        # What runs, and whether the run folder has yet to be told.
        self._deployed: dict[str, Any] = {}
        self._is_new = False
        # Why the run folder could not be written, empty where it could.
        self._unwritten = ""
        self._service: dict[str, Any] = {
            "state": "starting",
            "stage": "starting Ray",
            "pid": os.getpid(),
            "url": f"http://{host}:{config.port}",
            "config": str(config.path),
            "haproxy": haproxy,
            "metrics_url": f"http://127.0.0.1:{os.environ[METRICS_PORT]}/metrics",
            "haproxy_metrics_url": f"http://127.0.0.1:{os.environ[HAPROXY_PORT]}/metrics"
            if haproxy
            else None,
            "started": _now(),
            "cluster_id": run.cluster_id,
            "config_sha256": "",
            "num_deploys": 0,
            "deploying": None,  # the file of a deploy in place that is under way, and since when
            "error": "",
            "metrics_every_s": float(os.environ.get(REPORT_MS, 10_000)) / 1e3,
            "applications": {},
            "nodes": [],
            "restarts": {},
        }

    @classmethod
    def attached(cls, run: RunFolder) -> Supervisor:
        """Return a supervisor of a service that runs and has none; what fails here leaves the service as it is."""
        service, document = run.service(), run.deployed()
        supervisor = cls(
            _config(service["config"], document, service["config_sha256"]), run, service["haproxy"]
        )
        # The state stays `deploying` after a deploy that was cut short, and its `error` after one that failed: of
        # both `up` makes another deploy, because Serve may have the document of that one.
        supervisor._service |= service | {"pid": os.getpid(), "stage": "serving"}
        supervisor._deployed = document
        supervisor._connect(service["ray_address"])
        return supervisor

    def main(self) -> bool:
        """Run until SIGTERM or a failure; return whether it was the former."""
        error = ""
        try:
            self._note()
            with contextlib.suppress(TabrankError):
                self._run.write_pid()
            if not self._deployed:
                self._start()
                self._deploy(self._config)
                self._note(state="ready", num_deploys=1, nodes=_nodes())
            self._watch()
        except Exception as failure:
            error = reason(failure)
            _say(traceback.format_exc())
            self._note(state="failed", error=error)
        finally:
            self._shut_down(error)
        return not error

    def _start(self) -> None:
        # `ray start` makes a node in the same way, but always opens Ray's client port too. `ray.init()` would have the
        # kernel end the node with this process.
        from ray._private.node import Node
        from ray._private.parameter import RayParams

        temp = self._run.temp
        assert temp is not None, "made before this process is started"
        params = RayParams(
            include_dashboard=False,
            # Nothing travels through it.
            object_store_memory=128 << 20,
            temp_dir=str(temp / RAY),
            # On 127.0.0.1, as all of Ray's own (environment.py).
            metrics_export_port=int(os.environ[METRICS_PORT]),
        )
        node = Node(params, head=True, shutdown_at_exit=False, spawn_reaper=False)
        self._note(stage="starting Ray Serve", ray_address=node.address)
        self._connect(node.address)

    def _connect(self, address: str) -> None:
        import ray
        from ray.serve._private.api import serve_start
        from ray.serve.schema import ServeDeploySchema

        ray.init(address, namespace="serve", log_to_driver=False)
        self._node = self._run.node()
        self._run.hold_temp()
        signal.signal(signal.SIGTERM, self._on_terminate)  # ray.init() has put its own
        signal.signal(signal.SIGHUP, self._on_hangup)
        schema = ServeDeploySchema.model_validate(dict(self._config.serve))
        # As `serve run` does it: no public call takes a file.
        self._client = serve_start(
            http_options=schema.http_options.model_dump(),
            grpc_options=schema.grpc_options.model_dump(),
            global_logging_config=schema.logging_config,
            global_tracing_config=schema.tracing_config,
            controller_options=schema.controller_options,
            proxy_location=schema.proxy_location,
        )

    def _deploy(self, config: Config) -> None:
        """Hand the file to Serve and wait until it answers; TabrankError with the reason if it does not."""
        from ray.serve.schema import ServeDeploySchema

        self._note(stage="deploying the application")
        schema = ServeDeploySchema.model_validate(dict(config.serve))
        if schema.logging_config:  # of controller and proxies; applications take it over by themselves
            self._client.update_global_logging_config(schema.logging_config)
        self._client.deploy_apps(schema)
        if self._service["num_deploys"]:
            time.sleep(SETTLE_S)
        while not settled(self._applications()):
            self._pause()
        self._note(stage="waiting for an answer")
        self._client.wait_for_proxies_serving()
        alive_since = 0.0
        front = self._service["url"] + route(config.serve)
        while status_code(front + "/readyz") != 200:
            if not alive_since and status_code(front + "/livez") == 200:
                alive_since = time.monotonic()
            if alive_since and time.monotonic() - alive_since > READY_WAIT_S:
                break
            self._pause()
        self._deployed, self._is_new = {**config.serve, "nodes": plain_nodes(config)}, True
        self._note(config=str(config.path), config_sha256=config.sha256, stage="serving")

    def _watch(self) -> None:
        while True:
            until = time.monotonic() + STATUS_PERIOD_S
            while time.monotonic() < until and not self._redeploy:
                time.sleep(POLL_S)
            if self._redeploy:
                self._redeploy = False
                self._deploy_again()
            gone, _ = psutil.wait_procs(self._node, timeout=0)
            if gone:
                raise TabrankError(
                    "a process of Ray's node has ended, and with it the service; start it again"
                )
            try:
                with contextlib.suppress(TabrankError):  # a failed deploy was reported when it was asked for
                    self._applications()
                self._note(
                    nodes=_nodes(), restarts=self._restarts.found(_actors(), self._service["applications"])
                )
            except Exception as error:
                # Such as of a controller that starts again: the file grows old meanwhile, and `status` says so.
                _say(f"not watched: {reason(error)}")

    def _pause(self) -> None:
        """Wait during a deploy; write the state meanwhile, and raise if another deploy is asked for."""
        if self._redeploy:
            raise _Superseded
        self._note()
        time.sleep(POLL_S)

    def _deploy_again(self) -> None:
        error = ""
        try:
            under_way = {"config": self._run.wanted().get("config"), "since": _now()}
            self._note(state="deploying", error="", deploying=under_way)
            self._deploy(self._wanted())
        except _Superseded:
            return  # whoever asked for this deploy waits no more: it could not be placed, or takes too long
        except Exception as failure:
            _say(traceback.format_exc())
            error = reason(failure)
            if status_code(self._service["url"] + route(self._deployed) + "/livez") == 200:
                error += "; the service goes on with what it had"
        self._note(state="ready", error=error, deploying=None, num_deploys=self._service["num_deploys"] + 1)

    def _wanted(self) -> Config:
        """What to deploy: what was left in the run folder, else the file once more."""
        wanted = self._run.wanted()
        if not wanted:
            return read(self._config.path)
        return _config(wanted["config"], wanted["document"], wanted["sha256"])

    def _applications(self) -> dict[str, Any]:
        """Serve's own state, for the next note; TabrankError if an application cannot be deployed."""
        details = self._client.get_serve_details()["applications"]
        applications = {name: application_of(app) for name, app in details.items()}
        is_new = applications != self._service["applications"]
        self._service["applications"] = applications
        for name, app in details.items():
            if app["status"] == "DEPLOY_FAILED":
                messages = [app["message"], *(value["message"] for value in app["deployments"].values())]
                if is_new:
                    _say("\n".join(messages))
                raise TabrankError(f"application {name!r} cannot be deployed: {cause(messages)}")
        return applications

    def _note(self, **changes: Any) -> None:
        """Write what has changed; where the disk is full, nothing ends for it, and the next round tries again."""
        self._service |= changes
        try:
            self._run.write(self._service)
            if self._deployed and (self._is_new or not self._run.has_deployed()):
                self._run.keep(self._deployed)
                self._is_new = False
            self._unwritten = ""
        except TabrankError as error:
            if str(error) != self._unwritten:
                _say(str(error))
            self._unwritten = str(error)

    def _on_terminate(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(0)  # unwinds into _shut_down

    def _on_hangup(self, number: int, frame: Any) -> None:
        self._redeploy = True

    def _shut_down(self, error: str) -> None:
        import ray
        from ray import serve

        # A cluster that has failed gives no answer for a minute.
        if ray.is_initialized() and not error:
            serve.shutdown()  # lets running requests end, then HAProxy
            ray.shutdown()
        self._run.end()


def settled(applications: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether all run, and no replica of what was before is left that might still answer: it may be draining."""
    return bool(applications) and all(
        app["status"] == "RUNNING"
        and not any("STOPPING" in one["replicas"] for one in app["deployments"].values())
        for app in applications.values()
    )


def _config(path: str, document: Mapping[str, Any], sha256: str) -> Config:
    """Return a document of the run folder, pools and all, as if it were read from its file."""
    serve = {key: value for key, value in document.items() if key != "nodes"}
    return Config(Path(path), serve, document.get("nodes", {}), sha256)


def reason(error: Exception) -> str:
    """Return what went wrong in one line; of a traceback of others the last."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return str(error) if isinstance(error, TabrankError) else lines[-1]


def _say(text: str) -> None:
    """Write to the log; a full disk ends nothing."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _nodes() -> list[dict[str, Any]]:
    """The cluster's nodes, those that are gone too: the pool that its label names, its Prometheus text page."""
    import ray

    return [
        {
            "id": node["NodeID"],
            "pool": node.get("Labels", {}).get("pool", "head"),
            "alive": node["Alive"],
            "metrics_url": f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics",
        }
        for node in ray.nodes()
    ]


def _actors() -> list[dict[str, Any]]:
    """Return Ray's table of actors, the dead ones too: the public call for it needs the dashboard."""
    from ray._private.state import actors

    return list(actors().values())


def supervise(config_path: Path, run: RunFolder, haproxy: bool) -> None:
    """Leave the calling command (its session and its process tree), then supervise."""
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    supervisor = Supervisor.attached(run) if run.node() else Supervisor(read(config_path), run, haproxy)
    held = supervisor.main()
    # Without Ray's exit hooks, which wait for a cluster that is gone.
    os._exit(0 if held else 1)


if __name__ == "__main__":
    # python -m serve.operate.run.supervisor --supervise CONFIG RUN_FOLDER 0|1, started by `local_cluster` alone
    supervise(Path(sys.argv[2]), RunFolder.of(Path(sys.argv[3])), sys.argv[4] == "1")
