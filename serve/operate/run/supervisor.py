"""Supervisor of the service's local Ray cluster: starts it, deploys the file, watches, stops it.

The cluster outlives a killed supervisor, and the next supervisor attaches to it.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from serve.config.reader import Config
from serve.contract.errors import TabrankError
from serve.operate.host.deploying import SETTLE_S, config_of, document_of
from serve.operate.host.environment import HAPROXY_PORT, METRICS_PORT
from serve.operate.host.field import parsed
from serve.operate.host.run_folder import GRACE_S, POLL_S, RAY, RunFolder
from serve.operate.host.serve_details import application_of, cause, messages_of, settled
from serve.operate.host.service_state import ApplicationState, Deploying, NodeState, Probe, SupervisedState
from serve.operate.host.state import is_alive, status_code
from serve.operate.run.changes import added, broken, described, now
from serve.operate.run.restarts import Restarts

STATUS_PERIOD_S = 1.0
# Ray's setting for the interval at which a process reports its counters.
REPORT_MS = "RAY_metrics_report_interval_ms"
# A service that answers but is not ready, such as one without a store, counts as up after this
# time.
READY_WAIT_S = 3.0


class _Superseded(Exception):
    """Another deploy was requested while one was under way."""


class Supervisor:
    """Serve the wanted document of a run folder until SIGTERM; deploy it again at SIGHUP.

    `service.json` is the interface to other processes. It is written once a second, so that its age
    shows whether it is current.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._client: Any = None
        self._node: list[psutil.Process] = []
        self._restarts = Restarts()
        self._redeploy = False
        self._write_error = ""
        self._service = SupervisedState(
            stage="starting Ray",
            pid=os.getpid(),
            metrics_url=f"http://127.0.0.1:{os.environ[METRICS_PORT]}/metrics",
            haproxy_metrics_url=f"http://127.0.0.1:{os.environ[HAPROXY_PORT]}/metrics",
            started=now(),
            cluster_id=run.cluster_id,
            metrics_every_s=float(os.environ.get(REPORT_MS, 10_000)) / 1e3,
            restarts={},
        )

    def attach(self) -> None:
        """Take over a running service that has no supervisor; it survives a failure."""
        service = self._run.service()
        assert service is not None, "`up` has read it"
        # The state stays `deploying` after an interrupted deploy, and `error` stays after a failed
        # one. In both cases `up` deploys again, because Serve may have that deploy's document.
        self._service = service
        service.pid, service.stage = os.getpid(), "serving"
        self._note("a new supervisor took over")
        self._connect(config_of(Path(service.config), service.document))

    def main(self) -> bool:
        """Run until SIGTERM or a failure; return True after SIGTERM."""
        error = ""
        try:
            self._save()
            with contextlib.suppress(TabrankError):
                self._run.write_pid()
            if not self._service.document:
                self._begin()
            self._watch()
        except Exception as failure:
            error = reason(failure)
            _log(traceback.format_exc())
            self._save(state="failed", error=error)
        finally:
            self._shut_down(error)
        return not error

    def _begin(self) -> None:
        """Start a cluster with the wanted document."""
        config, before = self._wanted()
        host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
        self._save(url=f"http://{host}:{config.port}", config=str(config.path))
        self._start()
        self._connect(config)
        self._deploy(config)
        probes = broken(before, self._service.document) if before else []
        self._note(f"started with {config.path.name}", probes)
        self._save(state="ready", num_deploys=1, nodes=nodes())

    def _start(self) -> None:
        # `ray start` makes a node in the same way, but always opens Ray's client port too.
        # `ray.init()` would have the kernel end the node together with this process.
        from ray._private.node import Node
        from ray._private.parameter import RayParams

        temp = self._run.temp
        assert temp is not None, "made before this process is started"
        params = RayParams(
            include_dashboard=False,
            # The service puts nothing into the object store, so it can be small.
            object_store_memory=128 << 20,
            temp_dir=str(temp / RAY),
            # Like all of Ray's own ports, this one is bound to 127.0.0.1 (environment.py).
            metrics_export_port=int(os.environ[METRICS_PORT]),
        )
        node = Node(params, head=True, shutdown_at_exit=False, spawn_reaper=False)
        self._save(stage="starting Ray Serve", ray_address=node.address)

    def _connect(self, config: Config) -> None:
        import ray
        from ray.serve._private.api import serve_start

        ray.init(self._service.ray_address, namespace="serve", log_to_driver=False)
        self._node = self._run.node()
        self._run.hold_temp()
        # This must come after `ray.init()`, which installs a handler of its own.
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGHUP, self._on_hangup)
        schema = parsed(config.serve)
        # `serve run` does the same. Serve has no public call that takes a file.
        self._client = serve_start(
            http_options=schema.http_options.model_dump(),
            grpc_options=schema.grpc_options.model_dump(),
            global_logging_config=schema.logging_config,
            global_tracing_config=schema.tracing_config,
            controller_options=schema.controller_options,
            proxy_location=schema.proxy_location,
        )

    def _deploy(self, config: Config) -> None:
        """Pass the file to Serve and wait until it answers; raise TabrankError with the reason."""
        self._save(stage="deploying the application")
        schema = parsed(config.serve)
        # This is for the controller and the proxies. Each application reads it from its own
        # document.
        if schema.logging_config:
            self._client.update_global_logging_config(schema.logging_config)
        self._client.deploy_apps(schema)
        if self._service.num_deploys:
            time.sleep(SETTLE_S)
        while not settled(self._applications()):
            self._pause()
        self._save(stage="waiting for an answer")
        self._client.wait_for_proxies_serving()
        alive_since = math.inf
        front = self._service.front
        while front is not None and status_code(f"{front}/readyz") != 200:
            if status_code(f"{front}/livez") == 200:
                alive_since = min(alive_since, time.monotonic())
            if time.monotonic() - alive_since > READY_WAIT_S:
                break
            self._pause()
        self._save(config=str(config.path), document=document_of(config), stage="serving")

    def _watch(self) -> None:
        # This returns Ray's table of actors, dead ones included. The public call needs the
        # dashboard.
        from ray._private.state import actors

        while True:
            until = time.monotonic() + STATUS_PERIOD_S
            while time.monotonic() < until and not self._redeploy:
                time.sleep(POLL_S)
            if self._redeploy:
                self._redeploy = False
                self._deploy_again()
            gone, _ = psutil.wait_procs(self._node, timeout=0)
            if gone:
                raise TabrankError("a process of the Ray node has ended, and so has the service; restart it")
            try:
                # A failed deploy was reported to its caller already.
                with contextlib.suppress(TabrankError):
                    self._applications()
                restarts = self._restarts.found(actors().values(), self._service.applications)
                self._save(nodes=nodes(), restarts=restarts)
            except Exception as error:
                # This happens, for example, while the controller restarts. `status` reports that
                # the file is old.
                _log(f"the service's state could not be read: {reason(error)}")

    def _pause(self) -> None:
        """Wait during a deploy and write the state; raise if another deploy is requested."""
        if self._redeploy:
            raise _Superseded
        self._save()
        time.sleep(POLL_S)

    def _deploy_again(self) -> None:
        error, before = "", self._service.document
        self._restarts.deploying()
        try:
            config, _ = self._wanted()
            deploying = Deploying(str(config.path), now())
            self._save(state="deploying", error="", deploying=deploying)
            self._deploy(config)
            document = self._service.document
            self._note(described(config.path, before, document), broken(before, document))
        except _Superseded:
            # The deploy found no room on a node, or took too long. Its caller no longer waits.
            return
        except Exception as failure:
            _log(traceback.format_exc())
            error = reason(failure)
            if is_alive(self._service):
                error += "; the service goes on with its previous configuration"
            self._note("a deploy failed")
        # Whoever has requested another deploy meanwhile waits for the next number, for their own.
        num_deploys = self._service.num_deploys + (not self._redeploy)
        self._save(state="ready", error=error, deploying=None, num_deploys=num_deploys)

    def _wanted(self) -> tuple[Config, dict[str, Any]]:
        """Return what is to be deployed, and the document that ran before a restart, if any."""
        wanted = self._run.wanted()
        if wanted is None:
            raise TabrankError(f"{self._run.path}: no file is to be deployed; run: python -m serve up")
        return config_of(Path(wanted.config), wanted.document), wanted.before

    def _applications(self) -> dict[str, ApplicationState]:
        """Read Serve's state for the next write; raise TabrankError if a deploy failed."""
        details = self._client.get_serve_details()["applications"]
        applications = {name: application_of(app) for name, app in details.items()}
        is_new = applications != self._service.applications
        self._service.applications = applications
        for name, app in details.items():
            if app["status"] == "DEPLOY_FAILED":
                if is_new:
                    _log("\n".join(messages_of(app)))
                raise TabrankError(f"application {name!r} cannot be deployed: {cause(messages_of(app))}")
        return applications

    def _note(self, what: str, probes: Sequence[Probe] = ()) -> None:
        """Add to the list of changes, which the next save writes."""
        self._service.changes = added(self._service.changes, what, probes)

    def _save(self, **changes: Any) -> None:
        """Apply changes and write `service.json`; on a full disk the next call tries again."""
        self._service = msgspec.structs.replace(self._service, **changes)
        try:
            self._run.write(self._service)
            self._write_error = ""
        except TabrankError as error:
            if str(error) != self._write_error:
                _log(str(error))
            self._write_error = str(error)

    def _on_terminate(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # This unwinds into `_shut_down`.
        sys.exit(0)

    def _on_hangup(self, number: int, frame: Any) -> None:
        self._redeploy = True

    def _shut_down(self, error: str) -> None:
        import ray

        # A failed cluster would answer only after a minute, so do not ask it.
        if self._client is not None and not error:
            # This lets running requests end, and then HAProxy. A replica that hangs would delay it
            # by 20 s.
            self._client.shutdown(timeout_s=GRACE_S)
            ray.shutdown()
        self._run.end()


def reason(error: Exception) -> str:
    """Return the text of one of our own errors, or the last line of any other error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return str(error) if isinstance(error, TabrankError) else lines[-1]


def nodes() -> list[NodeState]:
    """Return the cluster's nodes, dead ones included, with pool label and metrics page."""
    import ray

    return [
        NodeState(
            id=node["NodeID"],
            pool=node.get("Labels", {}).get("pool", "head"),
            alive=node["Alive"],
            metrics_url=f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics",
        )
        for node in ray.nodes()
    ]


def _log(text: str) -> None:
    """Write a line to the log, and go on if the disk is full."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def supervise(run: RunFolder) -> None:
    """Leave the session and the process tree of the calling command, then supervise."""
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    supervisor = Supervisor(run)
    if run.node():
        supervisor.attach()
    # Skip Ray's exit hooks, which wait for a cluster that is gone.
    os._exit(0 if supervisor.main() else 1)


if __name__ == "__main__":
    # `local_cluster` starts this module with: --supervise RUN_FOLDER
    supervise(RunFolder(Path(sys.argv[2])))
