"""Read the running service and deploy to it: in a run folder, or at a Ray cluster's dashboard."""

from __future__ import annotations

import contextlib
import shlex
import signal
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serve.config.reader import Config
from serve.contract.errors import TabrankError
from serve.operate.diff.consequence import Consequence, Shape
from serve.operate.diff.difference import Change, Difference, compare
from serve.operate.diff.field import unshared
from serve.operate.host.run_folder import POLL_S, RunFolder
from serve.operate.host.state import RUN, up_command

Progress = Callable[[str], None]
# Serve's control loop runs every 0.1 s and may report the old state for some iterations.
SETTLE_S = 1.0
# The keys that Serve's details report of a document, beside its applications.
REPORTED_KEYS = ("proxy_location", "http_options", "grpc_options", "target_capacity")
UNWATCHED = "the supervisor is gone; start a new one with: python -m serve up"
NOTHING_RUNS = "nothing runs here; start it with: python -m serve up"


class RunningService(ABC):
    """Running service: its Serve `document`, and its pools of `nodes` or None if unknown."""

    where: str
    document: dict[str, Any]
    nodes: dict[str, Any] | None
    shapes: dict[str, Shape]
    not_compared: tuple[str, ...] = ()
    # The reason why the last deploy failed, or empty. The comparison is with the deploy before it.
    error = ""
    # The file of a deploy under way and its start. The comparison is with the deploy before it.
    under_way: Mapping[str, str] | None = None

    def difference(self, config: Config) -> Difference:
        """Return the difference between the running service and the file."""
        nodes = ({}, {}) if self.nodes is None else (self.nodes, plain_nodes(config))
        return compare(self.document, self.comparable(config.serve), self.shapes, nodes)

    def comparable(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a document that can be compared with the running service."""
        return dict(document)

    @abstractmethod
    def deploy(self, config: Config, timeout_s: float, progress: Progress) -> None:
        """Deploy in place and wait until it runs; raise TabrankError with the reason."""

    @abstractmethod
    def restart_command(self, config: Path) -> str:
        """Return the command that restarts Serve with this file."""

    @abstractmethod
    def config(self, document: Mapping[str, Any]) -> Config:
        """Return a document as if it were read from the running file, to deploy it."""


class LocalService(RunningService):
    """Service that `python -m serve up` started in a run folder."""

    def __init__(self, run: RunFolder) -> None:
        service = run.service()
        if not run.supervisors() or service.get("state") not in ("ready", "deploying"):
            raise TabrankError(f"{run.path}: {UNWATCHED if run.node() else NOTHING_RUNS}")
        self._run, self._service = run, service
        deployed = run.deployed()
        if not deployed:
            again = up_command(Path(service["config"]), run)
            raise TabrankError(
                f"{run.path}: the service was started by an earlier version; restart it with: {again}"
            )
        self.where, self.url, self.error = str(run.path), str(service["url"]), str(service.get("error", ""))
        self.under_way = service.get("deploying")
        self.nodes = deployed.pop("nodes", {})
        self.document = deployed
        self.shapes = {
            name: Shape(tuple(app["deployments"]), app.get("ingress"))
            for name, app in service.get("applications", {}).items()
        }

    def difference(self, config: Config) -> Difference:
        """Return the difference; another folder is one too, since relative paths start there."""
        found = super().difference(config)
        home = Path(self._service["config"]).parent
        if home == config.path.parent:
            return found
        moved = Change(
            "folder", str(home), str(config.path.parent), Consequence.RESTART, "relative paths start there"
        )
        return Difference((*found.changes, moved), found.deployments, Consequence.RESTART)

    def restart_command(self, config: Path) -> str:
        """Return the command `up`, which restarts Serve where it has to."""
        return up_command(config, self._run)

    def config(self, document: Mapping[str, Any]) -> Config:
        """Return a document as if it were read from the running file, to deploy it."""
        return Config(Path(self._service["config"]), document, self.nodes or {}, "")

    def deploy(self, config: Config, timeout_s: float, progress: Progress) -> None:
        """Have the supervisor deploy in place, and wait until it has done so."""
        with self._run.locked(timeout_s):
            request_deploy(config, self._run, timeout_s, progress)


class RemoteService(RunningService):
    """Service of a Ray cluster, through the REST interface of the cluster's dashboard."""

    # Serve's details do not contain these. They report a top-level logging_config per application.
    not_compared = ("nodes", "logging_config", "tracing_config", "controller_options")

    def __init__(self, address: str, client: Any = None) -> None:
        self.where, self.nodes = address, None
        with _sentences(address):
            from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

            self.client = client or ServeSubmissionClient(address)
        self.details = self._details()
        applications = self.details["applications"]
        applications = {name: app for name, app in applications.items() if app["status"] != "DELETING"}
        if not applications:
            raise TabrankError(
                f"{address}: no application runs there; deploy one with: serve deploy cluster.yaml"
            )
        by_code = [name for name, app in applications.items() if not app.get("deployed_app_config")]
        if by_code:
            raise TabrankError(
                f"{address}: {by_code[0]!r} was deployed from code and not from a file; deploy the file"
            )
        reported = {key: self.details.get(key) for key in REPORTED_KEYS}
        self.document = {key: value for key, value in reported.items() if value is not None}
        self.document["applications"] = [app["deployed_app_config"] for app in applications.values()]
        self.shapes = {name: shape_of(app) for name, app in applications.items()}

    def restart_command(self, config: Path) -> str:
        """Return the restart with Ray's own commands."""
        address = shlex.quote(self.where)
        return f"serve shutdown --address {address} && serve deploy --address {address} {shlex.quote(str(config))}"

    def config(self, document: Mapping[str, Any]) -> Config:
        """Return a document to deploy; no file belongs to it."""
        return Config(Path(self.where), document, {}, "")

    def comparable(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a document that can be compared with the running service."""
        given: dict[str, Any] = unshared({k: v for k, v in document.items() if k not in self.not_compared})
        if document.get("logging_config"):
            for app in given["applications"]:
                if app.get("logging_config") is None:
                    app["logging_config"] = document["logging_config"]
        return given

    def deploy(self, config: Config, timeout_s: float, progress: Progress) -> None:
        """Put the document as `serve deploy` does, and wait until each application runs."""
        deadline = time.monotonic() + timeout_s
        progress(f"deploying at {self.where}")
        with _sentences(self.where):
            self.client.deploy_applications(dict(config.serve))
        time.sleep(SETTLE_S)
        names = {app["name"] for app in config.serve["applications"]}
        while True:
            applications = self._details()["applications"]
            failed = [a for a in applications.values() if a["status"] in ("DEPLOY_FAILED", "UNHEALTHY")]
            if failed:
                messages = [failed[0]["message"], *(d["message"] for d in failed[0]["deployments"].values())]
                raise TabrankError(f"application {failed[0]['name']!r} cannot be deployed: {cause(messages)}")
            if (
                {name for name, app in applications.items() if app["status"] == "RUNNING"}
                == names
                == {*applications}
            ):
                return
            if time.monotonic() > deadline:
                raise TabrankError(f"{self.where}: not every application runs after {timeout_s:g} s")
            time.sleep(POLL_S * 3)

    def service(self) -> dict[str, Any]:
        """Return the content of `service.json` as far as the dashboard reports it."""
        applications = {name: application_of(app) for name, app in self.details["applications"].items()}
        statuses = {app["status"] for app in applications.values()}
        messages = [app["message"] for app in self.details["applications"].values() if app["message"]]
        options = self.details.get("http_options") or {}
        host = urlsplit(self.where).hostname
        return {
            "state": "ready" if statuses == {"RUNNING"} else min(statuses - {"RUNNING"}).lower(),
            "url": f"http://{host}:{options.get('port', 8000)}",
            "error": cause(messages) if messages else "",
            "applications": applications,
            "nodes": self._nodes(),
        }

    def _nodes(self) -> list[dict[str, Any]]:
        # The nodes come from a separate interface of the dashboard; the status can do without.
        with contextlib.suppress(Exception):
            answer = self.client._do_request("GET", "/api/v0/nodes").json()
            return [
                {
                    "id": node["node_id"],
                    "pool": (node.get("labels") or {}).get("pool", "head"),
                    "alive": node["state"] == "ALIVE",
                }
                for node in answer["data"]["result"]["result"]
            ]
        return []

    def _details(self) -> dict[str, Any]:
        with _sentences(self.where):
            return dict(self.client.get_serve_details())


def find(run: Path | None, address: str | None) -> RunningService:
    """Return the service of a run folder or at an address; raise TabrankError if none runs."""
    return RemoteService(address) if address and run is None else LocalService(RunFolder.of(run or RUN))


def plain_nodes(config: Config) -> dict[str, Any]:
    """Return the pools of `nodes` as the file has them."""
    return {name: pool if isinstance(pool, dict) else asdict(pool) for name, pool in config.nodes.items()}


def shape_of(app: Mapping[str, Any]) -> Shape:
    """Return the deployments of an application and its ingress, from Serve's details."""
    topology = app.get("deployment_topology") or {}
    return Shape(tuple(app["deployments"]), topology.get("ingress_deployment"))


def application_of(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return an application's entry of `service.json`, from Serve's details."""
    deployments = {}
    for name, deployment in details["deployments"].items():
        states = Counter(replica["state"] for replica in deployment["replicas"])
        deployments[name] = {
            "status": deployment["status"],
            "message": deployment["message"],
            "target": deployment["target_num_replicas"],
            "replicas": dict(states),
            "ids": sorted(replica["replica_id"] for replica in deployment["replicas"]),
        }
    return {
        "status": details["status"],
        "route_prefix": details["route_prefix"],
        "import_path": (details.get("deployed_app_config") or {}).get("import_path"),
        "ingress": shape_of(details).ingress,
        "deployments": deployments,
    }


def cause(messages: list[str]) -> str:
    """Return the line with the cause, from Serve's messages with their tracebacks."""
    lines = [line for message in messages for line in message.splitlines() if line.strip()]
    outer = [line for line in lines if not line.startswith(" ")]
    # Our own errors are sentences; the name of their class adds nothing.
    return (
        outer[-1].removeprefix("serve.contract.errors.TabrankError: ") if outer else "Serve gives no reason"
    )


def request_deploy(config: Config, run: RunFolder, timeout_s: float, progress: Progress) -> None:
    """Have a run folder's supervisor deploy in place; the caller holds the folder's lock."""
    supervisors, service = run.supervisors(), run.service()
    if not supervisors:
        raise TabrankError(f"{run.path}: {NOTHING_RUNS}")
    run.save_wanted(config.path, config.sha256, {**config.serve, "nodes": plain_nodes(config)})
    supervisors[0].send_signal(signal.SIGHUP)
    follow(run, timeout_s, progress, lambda now: now["num_deploys"] > service["num_deploys"])


def follow(
    run: RunFolder, timeout_s: float, progress: Progress, done: Callable[[Any], bool], known: str = ""
) -> None:
    """Report the supervisor's stages until `done`; raise TabrankError on an error but `known`."""
    deadline = time.monotonic() + timeout_s
    stage = ""
    while True:
        # Read before the file, so that the last stage of an ending supervisor is not missed.
        alive = bool(run.supervisors())
        service = run.service()
        if service.get("stage", stage) != stage:
            stage = service["stage"]
            progress(stage)
        if service and done(service):
            if service["error"] not in ("", known):
                raise TabrankError(f"{service['error']} (more in {run.log})")
            return
        if not alive:
            raise TabrankError(f"the service ended early: {_last_line(run.log)} (more in {run.log})")
        if time.monotonic() > deadline:
            raise TabrankError(f"no answer after {timeout_s:g} s, at: {stage or 'start'} (more in {run.log})")
        time.sleep(POLL_S)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"


@contextlib.contextmanager
def _sentences(address: str) -> Iterator[None]:
    """Turn any failure between here and the dashboard into one sentence."""
    if urlsplit(address).scheme not in ("http", "https"):
        raise TabrankError(f"--address {address}: name the dashboard, such as http://127.0.0.1:8265")
    try:
        yield
    except TabrankError:
        raise
    # `requests`, JSON decoding, or Ray's own RuntimeError with a whole page in it.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TabrankError(f"--address {address}: {lines[0][:200]}") from None
