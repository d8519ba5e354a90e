"""Predict what a change of `cluster.yaml` does to the running replicas, with Ray's own code.

This module keeps no list of options. Ray builds the targets of the old and the new document, as its
controller does. Its `DeploymentVersion` and code version then decide whether replicas are replaced,
reconfigured or left alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from serve.contract.errors import TabrankError
from serve.operate.diff.field import unshared

if TYPE_CHECKING:
    from ray.serve._private.deployment_info import DeploymentInfo

# Serve reads these keys once, at its start. Everything else in the file can be deployed in place.
FIXED_KEYS = ("proxy_location", "http_options", "grpc_options", "controller_options", "tracing_config")
# The options that may name code to import, by deployment; "" stands for the application itself.
_Code = dict[str, dict[str, Any]]


class Consequence(IntEnum):
    """Effect of a change on the running service, the mildest first."""

    NOTHING = 0
    IN_PLACE = 1
    ADDED = 2
    ROLLING = 3
    REBUILT = 4
    DELETED = 5
    RESTART = 6

    @property
    def sentence(self) -> str:
        """Return the wording in the list of changes."""
        return SENTENCES[self]


SENTENCES = {
    Consequence.NOTHING: "nothing touched",
    Consequence.IN_PLACE: "reconfigured in place",
    Consequence.ADDED: "application added",
    Consequence.ROLLING: "rolling restart",
    Consequence.REBUILT: "application rebuilt",
    Consequence.DELETED: "application deleted",
    Consequence.RESTART: "Serve restart",
}


@dataclass(frozen=True)
class Shape:
    """Deployments of an application and its ingress, which the file alone does not say."""

    deployments: tuple[str, ...] = ()
    ingress: str | None = None


class Targets:
    """Target state of a document: Serve's start options, and applications as Ray sees them.

    An option that the document leaves out has Ray's default here: options that the application's
    code sets cannot be seen.
    """

    def __init__(self, document: Mapping[str, Any], shapes: Mapping[str, Shape]) -> None:
        from ray.serve.schema import ServeDeploySchema

        given = unshared(document)
        code = {app["name"]: _take_code(app) for app in given.get("applications", ())}
        self.schema = ServeDeploySchema.model_validate(given)
        self.start = {key: _plain(getattr(self.schema, key)) for key in FIXED_KEYS}
        self.logging = _plain(self.schema.logging_config)
        self.applications: dict[str, Application] = {}
        for app in self.schema.applications:
            if app.logging_config is None:
                # The controller does the same.
                app.logging_config = self.schema.logging_config
            shape = shapes.get(app.name, Shape())
            self.applications[app.name] = Application(app, code[app.name], shape)

    def consequences(self, later: Targets, application: str) -> dict[str, Consequence]:
        """Return the consequence for each deployment of an application that both targets have."""
        old, new = self.applications[application], later.applications[application]
        if old.code_version != new.code_version:
            return dict.fromkeys({**old.infos, **new.infos}, Consequence.REBUILT)
        return {name: _consequence(info, new.infos[name]) for name, info in old.infos.items()}

    def worst(self, later: Targets) -> Consequence:
        """Return the worst consequence of moving to `later`."""
        if self.start != later.start:
            return Consequence.RESTART
        worst = [Consequence.IN_PLACE if self.logging != later.logging else Consequence.NOTHING]
        for name in self.applications:
            gone = name not in later.applications
            worst += [Consequence.DELETED] if gone else self.consequences(later, name).values()
        if set(later.applications) - set(self.applications):
            worst.append(Consequence.ADDED)
        return max(worst)

    def same(self, later: Targets) -> bool:
        """Return whether both targets are equal, so that the documents differ in wording only."""
        return (
            self.worst(later) == Consequence.NOTHING
            and self.schema.target_capacity == later.schema.target_capacity
            and self.applications == later.applications
        )

    def owner(self, path: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        """Return the object that holds a field's value, and the rest of the path in it."""
        if path[0] != "applications":
            return self.schema, path
        app = self.applications.get(path[1])
        if app is None or len(path) < 3:
            return ..., ()
        if path[2] != "deployments" or len(path) < 5:
            return app.schema, path[2:]
        info = app.infos[path[3]]
        inside = hasattr(info.deployment_config, path[4])
        return info.deployment_config if inside else info.replica_config, path[4:]

    def ignored_by_ray(self, later: Targets, application: str, deployment: str) -> bool:
        """Return whether Ray takes a deployment for unchanged though it needs a restart."""
        infos = [targets.applications[application].infos[deployment] for targets in (self, later)]
        before, after = map(_version, infos)
        return not infos[0].config_changed(infos[1]) and bool(before.requires_actor_restart(after))


class Application:
    """Code version of an application, and Ray's `DeploymentInfo` of each of its deployments."""

    def __init__(self, app: Any, code: _Code, shape: Shape) -> None:
        from ray.serve._private.application_state import override_deployment_info

        self.schema = app
        self.code_version = _code_version(app, code)
        names = dict.fromkeys([*(deployment.name for deployment in app.deployments), *shape.deployments])
        built = {name: _built(name, self.code_version) for name in names}
        try:
            self.infos: dict[str, DeploymentInfo] = override_deployment_info(built, app)
        except (TypeError, ValueError) as error:
            raise TabrankError(f"applications[{app.name}]: {str(error).splitlines()[0]}") from None
        for name, info in self.infos.items():
            # The controller sets both when it applies the target.
            if app.logging_config and info.deployment_config.logging_config is None:
                info.deployment_config.logging_config = app.logging_config.model_dump()
            if name == shape.ingress:
                info.route_prefix = app.route_prefix

    @functools.cached_property
    def _effect(self) -> tuple[Any, ...]:
        app = self.schema
        infos = {
            name: (
                info.deployment_config.model_dump(exclude={"user_configured_option_names"}),
                {k: v for k, v in vars(info.replica_config).items() if not k.startswith("serialized")},
            )
            for name, info in self.infos.items()
        }
        return self.code_version, app.external_scaler_enabled, app.route_prefix, infos

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Application) and self._effect == other._effect

    __hash__ = None  # type: ignore[assignment]


def _consequence(old: DeploymentInfo, new: DeploymentInfo) -> Consequence:
    # `DeploymentState.deploy` makes this check first. The check ignores placement groups and
    # max_replicas_per_node: where nothing else changes, Ray does nothing.
    if not old.config_changed(new) and old.route_prefix == new.route_prefix:
        return Consequence.NOTHING
    before, after = _version(old), _version(new)
    if before.requires_actor_restart(after):
        return Consequence.ROLLING
    return Consequence.NOTHING if before == after else Consequence.IN_PLACE


def _version(info: DeploymentInfo) -> Any:
    from ray.serve._private.deployment_state import DeploymentTargetState

    return DeploymentTargetState.create(info, 1).version


def _built(name: str, code_version: str) -> DeploymentInfo:
    """Return a deployment whose code sets no option."""
    from ray.serve._private.config import ReplicaConfig
    from ray.serve._private.deployment_info import DeploymentInfo

    config = _bare_config().model_copy(update={"version": code_version})
    return DeploymentInfo(config, ReplicaConfig.create(name), 0, "", name, code_version)


@functools.cache
def _bare_config() -> Any:
    from ray.serve._private.config import DeploymentConfig

    # Cached because it pickles a class on each call, which takes 10 ms.
    return DeploymentConfig()


def _take_code(app: dict[str, Any]) -> _Code:
    """Remove and return the keys that make Ray import code; only the code version needs them."""
    taken: _Code = {"": {"autoscaling_policy": app.pop("autoscaling_policy", None)}}
    for deployment in app.get("deployments") or ():
        keys = [key for key in ("request_router_config", "deployment_actors") if key in deployment]
        taken[deployment["name"]] = {key: deployment.pop(key) for key in keys}
        scaling = deployment.get("autoscaling_config")
        if isinstance(scaling, Mapping):
            taken[deployment["name"]]["autoscaling_config"] = dict(scaling)
            deployment["autoscaling_config"] = {k: v for k, v in scaling.items() if k != "policy"}
    return taken


def _code_version(app: Any, code: _Code) -> str:
    from ray.serve._private.deploy_utils import get_app_code_version

    whole = app.model_copy(deep=True)
    for target, name in ((whole, ""), *((deployment, deployment.name) for deployment in whole.deployments)):
        for key, value in code[name].items():
            setattr(target, key, value)
    return str(get_app_code_version(whole))


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value
