"""State of a service as records: the content of `service.json`, which the other tools read.

A field whose value is not known has its default. For example, only a supervisor knows some.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from serve.config.application import OUR_APPLICATION


def iso(at_s: float) -> str:
    """Return a time, given in s since 1970, in ISO form and UTC."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")


class Record(msgspec.Struct, forbid_unknown_fields=True):
    """Part of a state. A file of another version has other fields and is refused."""


def fields_of(record: Record, kind: type[Record]) -> dict[str, Any]:
    """Return those fields of a record that another kind of record has too."""
    return {name: getattr(record, name) for name in kind.__struct_fields__}


class DeploymentState(Record):
    """State of a deployment in Serve's words; `replicas` counts them by state."""

    status: str = "UNKNOWN"
    message: str = ""
    target: int | None = None
    replicas: dict[str, int] = {}
    ids: list[str] = []


class ApplicationState(Record):
    """State of an application; without a `route_prefix` it gets no requests over HTTP.

    `log` and `models` are its folders or buckets, and `clock` how it gets the time, as its file
    states them; "" where it states none.
    """

    status: str = "UNKNOWN"
    route_prefix: str | None = "/"
    import_path: str | None = None
    ingress: str | None = None
    log: str = ""
    models: str = ""
    clock: str = ""
    deployments: dict[str, DeploymentState] = {}

    @property
    def is_ours(self) -> bool:
        """True if it ranks."""
        return self.import_path == OUR_APPLICATION


class NodeState(Record):
    """State of a machine of the cluster."""

    alive: bool
    pool: str
    id: str = ""
    metrics_url: str | None = None


class Restarted(Record):
    """How often a part restarted, why and when it did last, and the last known times."""

    count: int
    last: str
    at: str | None = None
    times: list[str] = []


class Deploying(Record):
    """A deploy in place that is under way: its file, and its start in ISO form."""

    config: str
    since: str


class Probe(Record, omit_defaults=True):
    """Request that worked before a deploy, and has failed with `status` since the deploy at `at`.

    `name` is the name of the diagnosis, and `where` the application.
    """

    name: str
    where: str
    path: str
    status: int
    at: str = ""


class ServiceChange(Record, omit_defaults=True):
    """A start, deploy, restart or switch of the kill switch, with requests that may fail since."""

    at: str
    what: str
    probes: list[Probe] = []


class ServiceState(Record):
    """State of a running service."""

    state: str = "starting"
    stage: str = ""
    pid: int = 0
    url: str = ""
    config: str = "cluster.yaml"
    metrics_url: str | None = None
    haproxy_metrics_url: str | None = None
    ray_address: str = ""
    started: str = ""
    cluster_id: str = ""
    num_deploys: int = 0
    deploying: Deploying | None = None
    # The reason why the last deploy failed, or "".
    error: str = ""
    metrics_every_s: float = 10.0
    applications: dict[str, ApplicationState] = {}
    nodes: list[NodeState] = []
    restarts: dict[str, Restarted] | None = None
    changes: list[ServiceChange] = []

    @property
    def urls(self) -> dict[str, str]:
        """The URL of each application that has a route, ours first, without a slash at the end."""
        apps = sorted(self.applications.items(), key=lambda app: not app[1].is_ours)
        return {
            name: self.url + app.route_prefix.rstrip("/")
            for name, app in apps
            if app.route_prefix is not None
        }

    @property
    def our_urls(self) -> dict[str, str]:
        """The URL of each application that ranks."""
        return {name: url for name, url in self.urls.items() if self.applications[name].is_ours}

    @property
    def deployments(self) -> list[tuple[str, str, DeploymentState]]:
        """All deployments, each with the names of its application and itself."""
        return [
            (app, name, deployment)
            for app, details in self.applications.items()
            for name, deployment in details.deployments.items()
        ]

    @property
    def front(self) -> str | None:
        """The URL of the application to probe: the first of ours that has one, else the first."""
        return next(iter(self.urls.values()), None)


class SupervisedState(ServiceState):
    """Content of `service.json`: the state, and the running Serve document with its `nodes`."""

    document: dict[str, Any] = {}


class Wanted(Record):
    """A document to deploy, its `nodes`, its file, and what ran `before` a restart, if known."""

    config: str
    document: dict[str, Any]
    before: dict[str, Any] = {}
