"""Read the running service and deploy to it: in a run folder, or at a Ray cluster's dashboard."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serve.config.application import OUR_APPLICATION
from serve.config.reader import Config
from serve.contract.errors import TabrankError
from serve.operate.diff.dashboard import nodes
from serve.operate.diff.difference import Difference, Shape, compare, in_force
from serve.operate.diff.meaning import Measured, meanings
from serve.operate.host.run_folder import POLL_S, RunFolder
from serve.operate.host.state import RUN, status_code, up_command

Progress = Callable[[str], None]
# Serve's control loop runs every 0.1 s and may report the old state for some iterations.
SETTLE_S = 1.0
# The frames of a traceback, with their lines of code, and the class of an error of ours.
FRAMES = re.compile(r'^  File ".*\n(?: .*\n)*', re.MULTILINE)
OURS = re.compile(r"^serve\.[\w.]+: ")
# The keys that Serve's details report of a document, beside its applications.
REPORTED_KEYS = ("proxy_location", "http_options", "grpc_options", "target_capacity")
UNWATCHED = "the supervisor is gone; start a new one with: python -m serve up"
# The folder of the file, beside the fields of the file.
FOLDER = "folder"
NOTHING_RUNS = "nothing runs here; start it with: python -m serve up"
UNCONFIRMED = "refused: a change that needs --yes loses data or fails callers; deploy it: {command} --yes"


class RunningService(ABC):
    """Running service: its `document`, and the `path` of the file that it was read from."""

    where: str
    url: str
    path: Path
    # The folder of its files, or None on another machine.
    base: Path | None = None
    document: dict[str, Any]
    shapes: dict[str, Shape]
    not_compared: tuple[str, ...] = ()
    # Whether `document` has the old values of options that Ray ignored.
    is_recorded = True
    # The reason why the last deploy failed, or empty. The comparison is with the deploy before it.
    error = ""
    # The file of a deploy under way and its start. The comparison is with the deploy before it.
    under_way: Mapping[str, str] | None = None

    def difference(self, config: Config, p50_ms: Measured = lambda app: None) -> Difference:
        """Return the difference between the running service and the file, and what it means."""
        document = self.comparable(config)
        found = compare(self.document, document, self.shapes, is_recorded=self.is_recorded)
        bases = (self.base or config.path.parent, config.path.parent)
        return found.explained(meanings(self.document, document, found.changes, bases, p50_ms))

    def asked(self, deploy: Callable[[], None]) -> tuple[dict[str, int], list[str]]:
        """Deploy, and ask each of our routes of before by a GET without a key, before and after.

        Return the status of each URL after the deploy, and a line that compares it.
        """
        ours = (app for app in self.document["applications"] if app["import_path"] == OUR_APPLICATION)
        routes = (app.get("route_prefix", "/") for app in ours)
        urls = [f"{self.url}{route.rstrip('/')}/v1/model" for route in routes if route]
        before = {url: status_code(url) for url in urls}
        deploy()
        after = {url: status_code(url) for url in urls}
        lines = []
        for url, was in before.items():
            failed = ": today's callers fail" if after[url] not in (200, was) else ""
            lines += [f"GET {url} without a key answers {after[url] or 'nothing'} (before: {was}){failed}"]
        return after, lines

    def config(self, document: Mapping[str, Any]) -> Config:
        """Return a document as if it were read from the running file, to deploy it."""
        return config_of(self.path, {key: value for key, value in document.items() if key != FOLDER})

    @abstractmethod
    def comparable(self, config: Config) -> dict[str, Any]:
        """Return the content of a file that can be compared with the running service."""

    @abstractmethod
    def deploy(self, config: Config, timeout_s: float, progress: Progress) -> None:
        """Deploy in place and wait until it runs; raise TabrankError with the reason."""

    @abstractmethod
    def restart_command(self, config: Path, yes: bool) -> str:
        """Return the command that restarts Serve with this file; `yes` confirms its changes."""


class LocalService(RunningService):
    """Service that `python -m serve up` started in a run folder."""

    def __init__(self, run: RunFolder) -> None:
        service = run.service()
        if not run.supervisors() or service.get("state") not in ("ready", "deploying"):
            raise TabrankError(f"{run.path}: {UNWATCHED if run.node() else NOTHING_RUNS}")
        self._run, self.path = run, Path(service["config"])
        self.base = self.path.parent
        deployed = run.deployed()
        if not deployed:
            again = up_command(self.path, run)
            raise TabrankError(
                f"{run.path}: the service was started by an earlier version; restart it with: {again}"
            )
        self.where, self.url, self.error = str(run.path), str(service["url"]), str(service.get("error", ""))
        self.under_way = service.get("deploying")
        self.document = {"nodes": {}, **deployed, FOLDER: str(self.path.parent)}
        self.shapes = shapes_of(service.get("applications", {}))

    def comparable(self, config: Config) -> dict[str, Any]:
        """Return the content of a file, with its pools and its folder."""
        return {**config.serve, "nodes": plain_nodes(config), FOLDER: str(config.path.parent)}

    def restart_command(self, config: Path, yes: bool) -> str:
        """Return the command `up`, which restarts Serve where it has to."""
        return up_command(config, self._run) + " --yes" * yes

    def deploy(self, config: Config, timeout_s: float, progress: Progress) -> None:
        """Have the supervisor deploy in place, and wait until it has done so."""
        with self._run.locked(timeout_s):
            request_deploy(config, self._run, timeout_s, progress)


class RemoteService(RunningService):
    """Service of a Ray cluster, through the REST interface of the cluster's dashboard."""

    # Serve's details do not contain these. They report a top-level logging_config per application.
    not_compared = ("nodes", "logging_config", "tracing_config", "controller_options")
    # They have the file that was deployed.
    is_recorded = False

    def __init__(self, address: str, client: Any = None) -> None:
        self.where, self.path = address, Path(address)
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
        self.shapes = shapes_of({name: application_of(app) for name, app in applications.items()})
        port = (self.details.get("http_options") or {}).get("port", 8000)
        self.url = f"http://{urlsplit(address).hostname}:{port}"

    def restart_command(self, config: Path, yes: bool) -> str:
        """Return the restart with Ray's own commands, which ask nothing."""
        address = shlex.quote(self.where)
        return f"serve shutdown --address {address} && serve deploy --address {address} {shlex.quote(str(config))}"

    def comparable(self, config: Config) -> dict[str, Any]:
        """Return what the dashboard would report of a file."""
        given = {key: value for key, value in config.serve.items() if key not in self.not_compared}
        logging = config.serve.get("logging_config")
        given["applications"] = [
            {**app, "logging_config": logging} if logging and app.get("logging_config") is None else app
            for app in given["applications"]
        ]
        return given

    def deploy(self, config: Config, timeout_s: float, progress: Progress) -> None:
        """Put the document as `serve deploy` does, and wait until each application runs."""
        deadline = time.monotonic() + timeout_s
        progress(f"deploying at {self.where}")
        with _sentences(self.where):
            self.client.deploy_applications(dict(config.serve))
        time.sleep(SETTLE_S)
        wanted = {app["name"]: "RUNNING" for app in config.serve["applications"]}
        while True:
            applications = self._details()["applications"]
            for name, app in applications.items():
                if app["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                    raise TabrankError(f"application {name!r} cannot be deployed: {cause(messages_of(app))}")
            if {name: app["status"] for name, app in applications.items()} == wanted:
                return
            if time.monotonic() > deadline:
                raise TabrankError(f"{self.where}: not every application runs after {timeout_s:g} s")
            time.sleep(POLL_S * 3)

    def service(self) -> dict[str, Any]:
        """Return the content of `service.json` as far as the dashboard reports it."""
        applications = {name: application_of(app) for name, app in self.details["applications"].items()}
        statuses = {app["status"] for app in applications.values()}
        messages = [app["message"] for app in self.details["applications"].values() if app["message"]]
        return {
            "state": "ready" if statuses == {"RUNNING"} else min(statuses - {"RUNNING"}).lower(),
            "url": self.url,
            "error": cause(messages) if messages else "",
            "applications": applications,
            "nodes": nodes(self.client),
            "changes": self._deploys(),
        }

    def _deploys(self) -> list[dict[str, str]]:
        times = {name: app.get("last_deployed_time_s") for name, app in self.details["applications"].items()}
        return [
            {"at": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"), "what": f"deployed {name}"}
            for name, at in times.items()
            if at
        ]

    def _details(self) -> dict[str, Any]:
        with _sentences(self.where):
            return dict(self.client.get_serve_details())


def find(run: Path | None, address: str | None) -> RunningService:
    """Return the service of a run folder or at an address; raise TabrankError if none runs."""
    return RemoteService(address) if address and run is None else LocalService(RunFolder.of(run or RUN))


def config_of(path: Path, document: Mapping[str, Any], sha256: str = "") -> Config:
    """Return a document, with its pools, as if it were read from a file."""
    serve = {key: value for key, value in document.items() if key != "nodes"}
    return Config(path, serve, document.get("nodes", {}), sha256)


def plain_nodes(config: Config) -> dict[str, Any]:
    """Return the pools of `nodes` as the file has them."""
    return {name: pool if isinstance(pool, dict) else asdict(pool) for name, pool in config.nodes.items()}


def deployed_by(config: Config, before: Mapping[str, Any], applications: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document that runs after a deploy of a file, with its pools."""
    document = {**config.serve, "nodes": plain_nodes(config)}
    return in_force(before, document, shapes_of(applications))


def shapes_of(applications: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the deployments and the ingress of each application of `service.json`."""
    return {name: Shape(tuple(app["deployments"]), app.get("ingress")) for name, app in applications.items()}


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
        "ingress": (details.get("deployment_topology") or {}).get("ingress_deployment"),
        "deployments": deployments,
    }


def messages_of(details: Mapping[str, Any]) -> list[str]:
    """Return the messages of an application and of its deployments, from Serve's details."""
    return [details["message"], *(deployment["message"] for deployment in details["deployments"].values())]


def cause(messages: list[str]) -> str:
    """Return the message of the error, without traceback, from Serve's messages."""
    given = [message.strip() for message in messages if message.strip()]
    raised = [message for message in given if FRAMES.search(message)]
    if not given:
        return "Serve gives no reason"
    lines = [line for line in given[-1].splitlines() if not line.startswith(" ")]
    message = FRAMES.split(raised[-1])[-1] if raised else lines[-1]
    # Our own errors are sentences; the name of their class adds nothing.
    return OURS.sub("", message)


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
            raise TabrankError(f"no answer in {timeout_s:.0f} s, at: {stage or 'start'} (more in {run.log})")
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
