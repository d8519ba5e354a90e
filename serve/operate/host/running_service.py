"""Read the running service and deploy to it: in a run folder, or at a Ray cluster's dashboard."""

from __future__ import annotations

import contextlib
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serve.config.reader import Config
from serve.contract.commands import RUN
from serve.contract.errors import TabrankError
from serve.operate.host.dashboard import nodes
from serve.operate.host.deploying import SETTLE_S, Progress, config_of, document_of, request_deploy, unserved
from serve.operate.host.field import differing, parsed
from serve.operate.host.kill_switch import kept
from serve.operate.host.run_folder import POLL_S, RunFolder
from serve.operate.host.serve_details import application_of, cause, messages_of, settled
from serve.operate.host.service_state import ServiceChange, ServiceState, SupervisedState, iso

# The keys of a document, besides its applications, that Serve's details report.
REPORTED_KEYS = ("proxy_location", "http_options", "grpc_options", "target_capacity")
# A deploy in place has this time on this machine, and on a cluster, which may have to start nodes.
DEPLOY_S, CLUSTER_S = 120.0, 600.0
# Name under which the folder of the file is compared, besides the fields of the file.
FOLDER = "folder"


class RunningService(ABC):
    """Running service: its `state`, its `document`, and the `path` of the document's file."""

    where: str
    path: Path
    state: ServiceState
    # The folder of its files, or None on another machine.
    base: Path | None = None
    document: dict[str, Any]
    not_compared: tuple[str, ...] = ()
    # The reason why the last deploy failed, or "". `document` is then that of the deploy before it.
    error = ""

    def config(self, document: Mapping[str, Any]) -> Config:
        """Return a document as if it had been read from the running file, to deploy it."""
        return config_of(self.path, {key: value for key, value in document.items() if key != FOLDER})

    @abstractmethod
    def comparable(self, config: Config) -> dict[str, Any]:
        """Return the content of a file that can be compared with the running service."""

    @abstractmethod
    def deploy(self, config: Config, progress: Progress) -> None:
        """Deploy in place and wait until it runs; raise TabrankError with the reason."""

    @abstractmethod
    def restart_command(self, config: Path, yes: bool) -> str:
        """Return the command that restarts Serve with this file; `yes` confirms its changes."""


class LocalService(RunningService):
    """Service that `python -m serve up` started in a run folder."""

    def __init__(self, run: RunFolder) -> None:
        self._compared = run.deployed()
        service = run.service() or SupervisedState()
        if not run.supervisors() or service.state not in ("ready", "deploying"):
            raise unserved(run)
        self._run, self.where, self.path = run, str(run.path), Path(service.config)
        self.state, self.error, self.base = service, service.error, self.path.parent
        # A deploy that is under way or failed may have switched the kill switch on.
        self.document = {**kept(service.document, self._compared[0].document), FOLDER: str(self.base)}

    def comparable(self, config: Config) -> dict[str, Any]:
        """Return the content of a file, with its pools and its folder."""
        return {**document_of(config), FOLDER: str(config.path.parent)}

    def restart_command(self, config: Path, yes: bool) -> str:
        """Return the command `up`, which restarts Serve if it has to."""
        return self._run.command("up", config) + " --yes" * yes

    def deploy(self, config: Config, progress: Progress) -> None:
        """Have the supervisor deploy in place, and wait until it has done so.

        Raise TabrankError if the service is no longer the one that was read.
        """
        with self._run.locked(DEPLOY_S):
            if self._run.deployed() != self._compared:
                raise overtaken(self.where, self._run.service() or SupervisedState())
            request_deploy(config, self._run, DEPLOY_S, progress)


class RemoteService(RunningService):
    """Service of a Ray cluster, through the REST interface of the cluster's dashboard."""

    # Serve's details do not contain these fields. They report a top-level `logging_config` for each
    # application.
    not_compared = ("nodes", "logging_config", "tracing_config", "controller_options")

    def __init__(self, address: str, client: Any = None) -> None:
        self.where, self.path = address, Path(address)
        with _sentences(address):
            from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

            self.client = client or ServeSubmissionClient(address)
        details = self._details()
        reported = details["applications"]
        living = {name: app for name, app in reported.items() if app["status"] != "DELETING"}
        if not living:
            raise TabrankError(
                f"{address}: no application runs there; deploy one with: serve deploy cluster.yaml"
            )
        by_code = [name for name, app in living.items() if not app.get("deployed_app_config")]
        if by_code:
            raise TabrankError(
                f"{address}: {by_code[0]!r} was deployed from code and not from a file; deploy the file"
            )
        self.document = {key: details[key] for key in REPORTED_KEYS if details.get(key) is not None}
        self.document["applications"] = [app["deployed_app_config"] for app in living.values()]
        port = (details.get("http_options") or {}).get("port", 8000)
        others = {app["status"] for app in reported.values()} - {"RUNNING"}
        messages = [app["message"] for app in reported.values() if app["message"]]
        times = {name: app.get("last_deployed_time_s") for name, app in reported.items()}
        self.state = ServiceState(
            state=min(others).lower() if others else "ready",
            url=f"http://{urlsplit(address).hostname}:{port}",
            error=cause(messages) if messages else "",
            applications={name: application_of(app) for name, app in reported.items()},
            nodes=nodes(self.client),
            changes=[ServiceChange(iso(at), f"deployed {name}") for name, at in times.items() if at],
        )

    def restart_command(self, config: Path, yes: bool) -> str:
        """Return the restart with Ray's own commands, which do not ask for a confirmation."""
        address = shlex.quote(self.where)
        return f"serve shutdown --address {address} && serve deploy --address {address} {shlex.quote(str(config))}"

    def comparable(self, config: Config) -> dict[str, Any]:
        """Return what the dashboard would report after a deploy of a file."""
        given = {key: value for key, value in config.serve.items() if key not in self.not_compared}
        logging = config.serve.get("logging_config")
        given["applications"] = [
            {**app, "logging_config": logging} if logging and app.get("logging_config") is None else app
            for app in given["applications"]
        ]
        return given

    def deploy(self, config: Config, progress: Progress) -> None:
        """Put the document as `serve deploy` does, and wait until each application runs.

        Raise TabrankError if the applications are not those that were read, or not ours afterwards.
        Ray cannot compare and put in one step, so another put may come between.
        """
        deadline = time.monotonic() + CLUSTER_S
        self._confirm(self.document)
        progress(f"deploying at {self.where}")
        with _sentences(self.where):
            self.client.deploy_applications(dict(config.serve))
        time.sleep(SETTLE_S)
        wanted = {app["name"] for app in config.serve["applications"]}
        while True:
            applications = self._details()["applications"]
            for name, app in applications.items():
                if app["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                    raise TabrankError(f"application {name!r} cannot be deployed: {cause(messages_of(app))}")
            states = {name: application_of(app) for name, app in applications.items()}
            if states.keys() == wanted and settled(states):
                # As Ray stores it, without the fields that the file leaves out.
                ours = parsed(self.comparable(config))
                return self._confirm(ours.model_dump(mode="json", exclude_unset=True))
            if time.monotonic() > deadline:
                raise TabrankError(f"{self.where}: not every application runs after {CLUSTER_S:g} s")
            time.sleep(POLL_S * 3)

    def _confirm(self, document: Mapping[str, Any]) -> None:
        """Raise TabrankError if other applications are deployed now than those of a document."""
        now = RemoteService(self.where, self.client)
        old, new = ({"applications": one["applications"]} for one in (document, now.document))
        if any(differing(old, new, lambda _, value: value)):
            raise overtaken(self.where, now.state)

    def _details(self) -> dict[str, Any]:
        with _sentences(self.where):
            return dict(self.client.get_serve_details())


def options_of(run: Path | None, address: str | None) -> str:
    """Return the option that names the same service to another command; empty by default."""
    name, value = ("run", run) if run else ("address", address)
    return f" --{name} {shlex.quote(str(value))}" if value else ""


def find(run: Path | None, address: str | None) -> RunningService:
    """Return the service of a run folder or at an address; raise TabrankError if none runs."""
    return RemoteService(address) if address and run is None else LocalService(RunFolder(run or RUN))


def overtaken(where: str, now: ServiceState) -> TabrankError:
    """Return the refusal of a command beside which another one deployed, with what stands."""
    # The newest is the last one, but a cluster's changes are in the order of its applications.
    last = max(reversed(now.changes), key=lambda change: change.at, default=ServiceChange("", "nothing"))
    if now.deploying:
        last = ServiceChange(now.deploying.since, f"a deploy of {now.deploying.config} is under way")
    stands = f"another command deployed first; what stands: {last.what} ({last.at})"
    return TabrankError(f"{where}: {stands}; see `python -m serve diff`, then decide again")


@contextlib.contextmanager
def _sentences(address: str) -> Iterator[None]:
    """Turn any failure between here and the dashboard into one sentence."""
    if urlsplit(address).scheme not in ("http", "https"):
        raise TabrankError(f"--address {address}: name the dashboard, such as http://127.0.0.1:8265")
    try:
        yield
    except TabrankError:
        raise
    # It may come from `requests`, from decoding JSON, or be Ray's RuntimeError with a whole page in
    # it.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TabrankError(f"--address {address}: {lines[0][:200]}") from None
