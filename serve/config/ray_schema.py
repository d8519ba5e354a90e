"""Validation against the schema of the installed Ray: keys, values and the resulting sizes.

Serve silently drops unknown keys at almost every level, and accepts any mapping for
`autoscaling_config` until it deploys. This module validates with Ray's own models beforehand, so
that the rules follow the installed version of Ray.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.utils import validate_route_prefix
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from serve.config.known_keys import APPLICATION, DEPLOYMENT
from serve.config.node import Node
from serve.config.sizes import Size
from serve.contract.errors import did_you_mean
from serve.contract.typed_reader import Level, read
from serve.contract.typed_reader import levels as levels_of

# Import paths whose code Ray's models would import, and so run, to validate them.
IMPORTED = ("policy_function", "request_router_class")


def ray_levels() -> dict[Level, list[str]]:
    """Return the keys of each level of a Serve config."""
    levels = dict(levels_of(ServeDeploySchema))
    # Ray declares these two keys here, and refuses them below the top level.
    levels[APPLICATION] = [name for name in levels[APPLICATION] if name not in ("host", "port")]
    levels |= levels_of(AutoscalingPolicy, (*APPLICATION, "autoscaling_policy"))
    known = [name for name in RuntimeEnv.known_fields if not name.startswith("_")]
    for owner in (APPLICATION, (*DEPLOYMENT, "ray_actor_options")):
        levels[(*owner, "runtime_env")] = known
        levels[(*owner, "runtime_env", "config")] = list(RuntimeEnvConfig.known_fields)
    return levels


def ray_defaults(model: type[BaseModel] = ServeDeploySchema, level: Level = ()) -> dict[Level, Any]:
    """Return Ray's default for each field of a Serve config whose default is a plain value."""
    if level == (*DEPLOYMENT, "ray_actor_options"):
        # Ray takes these options as they are written, and adds one CPU if no CPU is stated.
        return {level: {}, (*level, "num_cpus"): 1}
    # Ray leaves these options without a value if the file states none.
    unset = DeploymentSchema.model_fields if level == DEPLOYMENT else ()
    defaults: dict[Level, Any] = dict.fromkeys((*level, name) for name in unset)
    for name, field in (DeploymentConfig if level == DEPLOYMENT else model).model_fields.items():
        value = field.get_default(call_default_factory=True)
        value = value.model_dump() if isinstance(value, BaseModel) else value
        if isinstance(value, bool | int | float | str | dict | list | None):
            defaults[*level, name] = value
    for name, field in model.model_fields.items():
        for part in filter(_is_model, _parts(field.annotation)):
            defaults |= ray_defaults(part, (*level, name))
    return defaults


def check_values(root: Node) -> None:
    """Refuse the values that Ray's models refuse; Ray checks options of actors when it deploys."""
    _validate(root, ServeDeploySchema, {key: value for key, value in root.value.items() if key != "nodes"})
    for application in root["applications"].items():
        _check_route(application["route_prefix"])
        for deployment in application["deployments"].items():
            if not isinstance(deployment.value, dict):
                deployment.refuse(f"expected a mapping with the key 'name' (got {deployment.value!r})")
                continue
            _refuse_yes(deployment, DeploymentSchema)
            # Ray takes any mapping here, and validates it when it deploys.
            if isinstance(scaling := _scaling(deployment.value), dict):
                _refuse_yes(deployment["autoscaling_config"], AutoscalingConfig)
                _check_scaling(deployment["autoscaling_config"], scaling)


def size(at: Node, deployment: Mapping[str, Any]) -> Size:
    """Return the size of a valid deployment, with Ray's defaults filled in."""
    return read(Size, {**with_defaults(deployment), "at": at}, "")


def with_defaults(deployment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a valid deployment, and those that `Size` adds, with Ray's defaults."""
    options = deployment.get("ray_actor_options", {})
    # Serve's own default is one CPU.
    num_cpus = 1 if options.get("num_cpus") is None else options["num_cpus"]
    alone = [{"CPU": num_cpus, "GPU": options.get("num_gpus") or 0}]
    bundles = deployment.get("placement_group_bundles") or alone
    defaults = _defaults(DeploymentConfig)
    fixed = deployment.get("num_replicas") or defaults["num_replicas"]
    alike = {"min_replicas": fixed, "max_replicas": fixed}
    unscaled = {"target_ongoing_requests": None}
    scaling = _scaling(deployment)
    return {
        **defaults,
        **deployment,
        **(alike | unscaled if scaling is None else _defaults(AutoscalingConfig) | scaling),
        "num_cpus": sum(float(bundle.get("CPU", 0)) for bundle in bundles),
        "num_gpus": sum(float(bundle.get("GPU", 0)) for bundle in bundles),
        "num_bundles": len(bundles),
    }


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    return {name: field.default for name, field in model.model_fields.items()}


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield the types in an annotation such as `Optional[Union[Dict, AutoscalingConfig]]`."""
    yield annotation
    for argument in typing.get_args(annotation):
        yield from _parts(argument)


def _check_route(at: Node) -> None:
    try:
        validate_route_prefix(at.value if at.is_sound else None)
    except ValueError as error:
        at.refuse(str(error))


def _refuse_yes(at: Node, model: type[BaseModel]) -> None:
    """Refuse `yes` for a number; pydantic would take it for 1."""
    for name, value in at.value.items() if isinstance(at.value, dict) else ():
        field = model.model_fields.get(name)
        parts = set(_parts(field.annotation)) if field and isinstance(value, bool) else set()
        if parts & {int, float} and bool not in parts:
            at[name].refuse(f"expected a number (got {value}, which YAML reads for yes and no)")


def _check_scaling(at: Node, scaling: Mapping[str, Any]) -> None:
    _validate(at, AutoscalingConfig, scaling)
    if scaling.get("target_ongoing_requests", 0) is None:
        at["target_ongoing_requests"].refuse(
            "Ray compares this value with max_ongoing_requests; give a number (got None)"
        )


def _scaling(deployment: Mapping[str, Any]) -> Any:
    """Return the autoscaling config as Ray derives it; `num_replicas: auto` has its own bounds."""
    given = deployment.get("autoscaling_config")
    if deployment.get("num_replicas") == "auto" and (given is None or isinstance(given, dict)):
        return {**AutoscalingConfig.default().model_dump(exclude_unset=True), **(given or {})}
    return given


def _without_imports(value: Any) -> Any:
    """Return a copy without the import paths whose code Ray's models would run."""
    if isinstance(value, dict):
        return {key: _without_imports(child) for key, child in value.items() if key not in IMPORTED}
    return [_without_imports(child) for child in value] if isinstance(value, list) else value


def _validate(at: Node, model: Any, value: Any) -> bool:
    try:
        model.model_validate(_without_imports(value))
    except ValidationError as error:
        for problem in error.errors():
            _note(at, value, problem)
        return False
    # Ray's validators assume types; whatever they raise, the value is invalid.
    except Exception as error:
        if at.is_sound:
            at.refuse(f"Ray refuses this: {' '.join(str(error).split())}")
        return False
    return True


def _is_model(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)


def _note(at: Node, value: Any, problem: Any) -> None:
    """Add an error of pydantic, unless something at or below its place was refused already."""
    # The check of keys reports unknown keys with a better message.
    if problem["type"] == "extra_forbidden":
        return
    inner = value
    for step in problem["loc"]:
        # In a union pydantic also names the branch that it tried, such as dict[any,any].
        if isinstance(step, int) or step.isidentifier():
            try:
                inner = inner[step]
            except (KeyError, IndexError, TypeError):
                break
            at = at[step]
    if not at.is_sound:
        return
    if problem["type"] == "missing":
        at.miss(str(problem["loc"][-1]), "Ray requires it")
        return
    given = problem["input"]
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(given, dict | list):
        _blame(at, message, inner)
        return
    quotes = problem["type"] == "string_type" and isinstance(given, bool | int | float)
    known = re.findall(r"'([^']+)'", str(problem.get("ctx", {}).get("expected", "")))
    remedy = "; put it in quotes" if quotes else did_you_mean(str(given), known)
    at.refuse(f"{message} (got {given!r}){remedy}")


def _blame(at: Node, message: str, given: Any) -> None:
    """Refuse a combination of values, at the first key that the message mentions."""
    named = [word for word in re.findall(r"\w+", message) if isinstance(given, dict) and word in given]
    (at[named[0]] if named else at).refuse(message.rstrip(".!"))
