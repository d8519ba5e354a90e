"""Supervisor of the service's local Ray cluster: start it, deploy the file, watch, shut down.

The cluster outlives a killed supervisor, and the next supervisor attaches to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from serve.config.reader import Config, read
from serve.contract.errors import TabrankError
from serve.operate.diff.field import parsed
from serve.operate.diff.running import SETTLE_S, application_of, cause, config_of, deployed_by, messages_of
from serve.operate.host.environment import DASHBOARD_PORT, HAPROXY_PORT, LOCAL, METRICS_PORT
from serve.operate.host.run_folder import GRACE_S, POLL_S, RAY, RunFolder
from serve.operate.host.state import route, status_code
from serve.operate.run.changes import added, broken, described, now
from serve.operate.run.ray_tables import actors, nodes
from serve.operate.status.restarts import Restarts

STATUS_PERIOD_S = 1.0
# Ray's setting: the interval at which a process reports its counters.
REPORT_MS = "RAY_metrics_report_interval_ms"
# A service that answers but is not ready, such as one without a store, counts as up after 3 s.
READY_WAIT_S = 3.0


class _Superseded(Exception):
    """Another deploy was requested while one is under way."""


class Supervisor:
    """Serve one `cluster.yaml` until SIGTERM; SIGHUP deploys the run folder's wanted document.

    `service.json` is the interface to other processes; its `error` is the reason why the last
    deploy failed. It is written once a second, so that its age shows whether it is current.
    """

    def __init__(self, config: Config, run: RunFolder, haproxy: bool) -> None:
        host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
        dashboard = os.environ.get(DASHBOARD_PORT)
        haproxy_page = f"http://127.0.0.1:{os.environ[HAPROXY_PORT]}/metrics" if haproxy else None
        self._config = config
        self._run = run
        self._client: Any = None
        self._node: list[psutil.Process] = []
        self._restarts = Restarts(run.replica_logs and run.replica_logs.parent)
        self._redeploy = False
        # The running document, whether it is unsaved, and the error of the last write or empty.
        self._deployed: dict[str, Any] = {}
        self._is_unsaved = False
        self._write_error = ""
        self._service: dict[str, Any] = {
            "state": "starting",
            "stage": "starting Ray",
            "pid": os.getpid(),
            "url": f"http://{host}:{config.port}",
            "config": str(config.path),
            "haproxy": haproxy,
            "metrics_url": f"http://127.0.0.1:{os.environ[METRICS_PORT]}/metrics",
            "haproxy_metrics_url": haproxy_page,
            "dashboard_url": dashboard and f"http://{LOCAL}:{dashboard}",
            "started": now(),
            "cluster_id": run.cluster_id,
            "config_sha256": "",
            "num_deploys": 0,
            # The file of a deploy in place that is under way, and its start.
            "deploying": None,
            "error": "",
            "metrics_every_s": float(os.environ.get(REPORT_MS, 10_000)) / 1e3,
            "applications": {},
            "nodes": [],
            "restarts": {},
            # The last starts, deploys and turns of the kill switch: `at` and `what`.
            "changes": [],
        }

    @classmethod
    def attached(cls, run: RunFolder) -> Supervisor:
        """Return a supervisor for a running service that has none; a failure ends nothing."""
        service, document = run.service(), run.deployed()
        config = config_of(Path(service["config"]), document, service["config_sha256"])
        supervisor = cls(config, run, service["haproxy"])
        # The state stays `deploying` after an interrupted deploy, and `error` stays after a failed
        # one. In both cases `up` deploys again, because Serve may have that deploy's document.
        supervisor._service |= service | {"pid": os.getpid(), "stage": "serving"}
        supervisor._deployed = document
        supervisor._note("a new supervisor took over")
        supervisor._connect(service["ray_address"])
        return supervisor

    def main(self) -> bool:
        """Run until SIGTERM or a failure; return True after SIGTERM."""
        error = ""
        try:
            self._save()
            with contextlib.suppress(TabrankError):
                self._run.write_pid()
            if not self._deployed:
                self._start()
                self._deploy(self._config)
                self._note(f"started with {self._config.path.name}")
                self._save(state="ready", num_deploys=1, nodes=nodes())
            self._watch()
        except Exception as failure:
            error = reason(failure)
            _log(traceback.format_exc())
            self._save(state="failed", error=error)
        finally:
            self._shut_down(error)
        return not error

    def _start(self) -> None:
        # `ray start` makes a node in the same way, but always opens Ray's client port too.
        # `ray.init()` would have the kernel end the node together with this process.
        from ray._private.node import Node
        from ray._private.parameter import RayParams

        temp, dashboard = self._run.temp, os.environ.get(DASHBOARD_PORT)
        assert temp is not None, "made before this process is started"
        params = RayParams(
            include_dashboard=bool(dashboard),
            dashboard_host=LOCAL,
            # Without a dashboard Ray ignores its port.
            dashboard_port=int(dashboard or 0),
            # The service puts nothing into the object store.
            object_store_memory=128 << 20,
            temp_dir=str(temp / RAY),
            # Bound to 127.0.0.1, as are all of Ray's own ports (environment.py).
            metrics_export_port=int(os.environ[METRICS_PORT]),
        )
        node = Node(params, head=True, shutdown_at_exit=False, spawn_reaper=False)
        self._save(stage="starting Ray Serve", ray_address=node.address)
        self._connect(node.address)

    def _connect(self, address: str) -> None:
        import ray
        from ray.serve._private.api import serve_start

        ray.init(address, namespace="serve", log_to_driver=False)
        self._node = self._run.node()
        self._run.hold_temp()
        # After ray.init(), which installs its own handler.
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGHUP, self._on_hangup)
        schema = parsed(self._config.serve)
        # `serve run` does the same: Serve has no public call that takes a file.
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
        # For the controller and the proxies; each application takes it from its own document.
        if schema.logging_config:
            self._client.update_global_logging_config(schema.logging_config)
        self._client.deploy_apps(schema)
        if self._service["num_deploys"]:
            time.sleep(SETTLE_S)
        while not settled(self._applications()):
            self._pause()
        self._save(stage="waiting for an answer")
        self._client.wait_for_proxies_serving()
        alive_since = 0.0
        front = self._service["url"] + route(config.serve)
        while status_code(front + "/readyz") != 200:
            if not alive_since and status_code(front + "/livez") == 200:
                alive_since = time.monotonic()
            if alive_since and time.monotonic() - alive_since > READY_WAIT_S:
                break
            self._pause()
        self._deployed = deployed_by(config, self._deployed, self._service["applications"])
        self._is_unsaved = True
        self._save(config=str(config.path), config_sha256=config.sha256, stage="serving")

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
                raise TabrankError("a process of the Ray node has ended, and so has the service; restart it")
            try:
                # A failed deploy was already reported to its caller.
                with contextlib.suppress(TabrankError):
                    self._applications()
                restarts = self._restarts.found(actors(), self._service["applications"])
                self._save(nodes=nodes(), restarts=restarts)
            except Exception as error:
                # For example while the controller restarts. `status` reports that the file is old.
                _log(f"the service's state could not be read: {reason(error)}")

    def _pause(self) -> None:
        """Wait during a deploy and write the state; raise if another deploy is requested."""
        if self._redeploy:
            raise _Superseded
        self._save()
        time.sleep(POLL_S)

    def _deploy_again(self) -> None:
        error, before = "", self._deployed
        self._restarts.deploying()
        try:
            under_way = {"config": self._run.wanted().get("config"), "since": now()}
            self._save(state="deploying", error="", deploying=under_way)
            config = self._wanted()
            self._deploy(config)
            what = described(config.path, before, self._deployed, self._service["applications"])
            self._note(what, probes=broken(before, self._deployed))
        except _Superseded:
            # The deploy could not be placed or takes too long, and its caller no longer waits.
            return
        except Exception as failure:
            _log(traceback.format_exc())
            error = reason(failure)
            if status_code(self._service["url"] + route(self._deployed) + "/livez") == 200:
                error += "; the service goes on with its previous configuration"
            self._note("a deploy failed")
        self._save(state="ready", error=error, deploying=None, num_deploys=self._service["num_deploys"] + 1)

    def _wanted(self) -> Config:
        """Return the run folder's wanted document, or else the file read again."""
        wanted = self._run.wanted()
        if not wanted:
            return read(self._config.path)
        return config_of(Path(wanted["config"]), wanted["document"], wanted["sha256"])

    def _applications(self) -> dict[str, Any]:
        """Read Serve's state for the next write; raise TabrankError if a deploy failed."""
        details = self._client.get_serve_details()["applications"]
        applications = {name: application_of(app) for name, app in details.items()}
        is_new = applications != self._service["applications"]
        self._service["applications"] = applications
        for name, app in details.items():
            if app["status"] == "DEPLOY_FAILED":
                if is_new:
                    _log("\n".join(messages_of(app)))
                raise TabrankError(f"application {name!r} cannot be deployed: {cause(messages_of(app))}")
        return applications

    def _note(self, what: str, **more: object) -> None:
        """Add to the list of changes, which the next save writes."""
        self._service["changes"] = added(self._service["changes"], what, **more)

    def _save(self, **changes: Any) -> None:
        """Apply changes and write `service.json`; on a full disk the next call tries again."""
        self._service |= changes
        try:
            self._run.write(self._service)
            if self._deployed and (self._is_unsaved or not self._run.has_deployed()):
                self._run.save_deployed(self._deployed)
                self._is_unsaved = False
            self._write_error = ""
        except TabrankError as error:
            if str(error) != self._write_error:
                _log(str(error))
            self._write_error = str(error)

    def _on_terminate(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Unwinds into _shut_down.
        sys.exit(0)

    def _on_hangup(self, number: int, frame: Any) -> None:
        self._redeploy = True

    def _shut_down(self, error: str) -> None:
        import ray

        # A failed cluster answers only after a minute.
        if self._client is not None and not error:
            # Lets running requests end, then HAProxy. A replica that hangs would hold it for 20 s.
            self._client.shutdown(timeout_s=GRACE_S)
            ray.shutdown()
        self._run.end()


def settled(applications: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether all applications run and no old replica, which may be draining, can answer."""
    return bool(applications) and all(
        app["status"] == "RUNNING"
        and not any("STOPPING" in one["replicas"] for one in app["deployments"].values())
        for app in applications.values()
    )


def reason(error: Exception) -> str:
    """Return our own error as it is, and the last line of any other error."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return str(error) if isinstance(error, TabrankError) else lines[-1]


def _log(text: str) -> None:
    """Write a line to the log; a full disk ends nothing."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def supervise(config_path: Path, run: RunFolder, haproxy: bool) -> None:
    """Leave the session and the process tree of the calling command, then supervise."""
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    supervisor = Supervisor.attached(run) if run.node() else Supervisor(read(config_path), run, haproxy)
    # Skip Ray's exit hooks, which wait for a cluster that is gone.
    os._exit(0 if supervisor.main() else 1)


if __name__ == "__main__":
    # `local_cluster` starts this module with: --supervise CONFIG RUN_FOLDER 0|1
    supervise(Path(sys.argv[2]), RunFolder.of(Path(sys.argv[3])), sys.argv[4] == "1")
