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
from ray.serve._private.config import DeploymentConfig, ReplicaConfig
from ray.serve._private.utils import validate_route_prefix
from ray.serve.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
)
from ray.serve.schema import (
    DeploymentSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from serve.config.diagnostics import Findings
from serve.config.known_keys import APPLICATION, DEPLOYMENT
from serve.config.sizes import Size
from serve.config.yaml_positions import Steps
from serve.contract.errors import did_you_mean
from serve.contract.typed_reader import Level
from serve.contract.typed_reader import levels as levels_of

# Models of keys that Ray declares as plain mappings, and validates only when it deploys.
LATE = {"autoscaling_policy": AutoscalingPolicy, "actor_options": RayActorOptionsSchema}
# Import paths whose code Ray's models would import, and so run, to validate them.
IMPORTED = ("policy_function", "request_router_class")


def ray_levels() -> dict[Level, list[str]]:
    """Return the keys of each level of a Serve config."""
    levels = dict(levels_of(ServeDeploySchema))
    # Ray declares these two keys here, and refuses them below the top level.
    levels[APPLICATION] = [name for name in levels[APPLICATION] if name not in ("host", "port")]
    levels |= levels_of(AutoscalingPolicy, (*APPLICATION, "autoscaling_policy"))
    actor = (*DEPLOYMENT, "deployment_actors", "actor_options")
    levels |= levels_of(RayActorOptionsSchema, actor)
    levels[(*DEPLOYMENT, "ray_actor_options", "fallback_strategy")] = ["label_selector"]
    known = [name for name in RuntimeEnv.known_fields if not name.startswith("_")]
    for owner in (APPLICATION, (*DEPLOYMENT, "ray_actor_options"), actor):
        levels[(*owner, "runtime_env")] = known
        levels[(*owner, "runtime_env", "config")] = list(RuntimeEnvConfig.known_fields)
    return levels


def check_values(findings: Findings, document: dict[str, Any]) -> None:
    """Refuse the values that one of Ray's models refuses, now or when it deploys."""
    _check(findings, (), ServeDeploySchema, document)


def size(steps: Steps, deployment: Mapping[str, Any]) -> Size:
    """Return the size of a valid deployment, with Ray's defaults filled in."""
    options = deployment.get("ray_actor_options", {})
    # Serve's own default is one CPU.
    num_cpus = 1 if options.get("num_cpus") is None else options["num_cpus"]
    alone = [{"CPU": num_cpus, "GPU": options.get("num_gpus") or 0}]
    bundles = deployment.get("placement_group_bundles") or alone
    defaults = {name: field.default for name, field in DeploymentConfig.model_fields.items()}
    own = {**defaults, **deployment}
    fixed = own["num_replicas"] or defaults["num_replicas"]
    scaling = _scaling(deployment)
    if scaling is not None:
        scaling = {name: field.default for name, field in AutoscalingConfig.model_fields.items()} | scaling
    return Size(
        steps=steps,
        name=str(own["name"]),
        min_replicas=int(scaling["min_replicas"] if scaling else fixed),
        max_replicas=int(scaling["max_replicas"] if scaling else fixed),
        target_ongoing_requests=float(scaling["target_ongoing_requests"]) if scaling else None,
        metrics_interval_s=float(scaling["metrics_interval_s"]) if scaling else None,
        look_back_period_s=float(scaling["look_back_period_s"]) if scaling else None,
        max_ongoing_requests=int(own["max_ongoing_requests"]),
        num_cpus=sum(float(bundle.get("CPU", 0)) for bundle in bundles),
        num_gpus=sum(float(bundle.get("GPU", 0)) for bundle in bundles),
        num_bundles=len(bundles),
        shutdown_timeout_s=float(own["graceful_shutdown_timeout_s"]),
        shutdown_wait_loop_s=float(own["graceful_shutdown_wait_loop_s"]),
        health_check_timeout_s=float(own["health_check_timeout_s"]),
    )


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield the types in an annotation such as `Optional[Union[Dict, AutoscalingConfig]]`."""
    yield annotation
    for argument in typing.get_args(annotation):
        yield from _parts(argument)


def _check(findings: Findings, steps: Steps, model: Any, value: Any) -> bool:
    """Refuse what a model refuses; first what is nested, because one error would hide others."""
    if not isinstance(value, dict):
        needed = [name for name, field in model.model_fields.items() if field.is_required()]
        findings.refuse(
            steps, f"expected a mapping{f' with the key {needed[0]!r}' if needed else ''} (got {value!r})"
        )
        return False
    sound = dict(value)
    for key, child in value.items():
        here = (*steps, key)
        parts = list(_parts(model.model_fields[key].annotation)) if key in model.model_fields else []
        nested = next(filter(_is_model, [*parts, LATE.get(key)]), None)
        is_list = any(typing.get_origin(part) is list for part in parts)
        if nested and is_list and isinstance(child, list):
            items = enumerate(child)
            sound[key] = [item for i, item in items if _check(findings, (*here, i), nested, item)]
        elif nested and not is_list and child is not None:
            _check(findings, here, nested, _scaling(value) if nested is AutoscalingConfig else child)
        _check_plain(findings, here, child, parts)
        if not is_list and not findings.are_none(here):
            del sound[key]
    if _validate(findings, steps, model, sound) and findings.are_none(steps):
        _check_more(findings, steps, model, sound)
    return findings.are_none(steps)


def _check_more(findings: Findings, steps: Steps, model: Any, value: Mapping[str, Any]) -> None:
    """Refuse values that Ray refuses elsewhere than in the model."""
    if model is ServeApplicationSchema:
        _check_env(findings, (*steps, "runtime_env"), value.get("runtime_env", {}))
        try:
            validate_route_prefix(value.get("route_prefix"))
        except ValueError as error:
            findings.refuse((*steps, "route_prefix"), str(error))
    if model is AutoscalingConfig and value.get("target_ongoing_requests", 0) is None:
        where = (*steps, "target_ongoing_requests")
        findings.refuse(where, "Ray compares this value with max_ongoing_requests; give a number (got None)")
    if model is DeploymentSchema:
        _when_deployed(findings, steps, value)


def _scaling(deployment: Mapping[str, Any]) -> Any:
    """Return the autoscaling config as Ray derives it; `num_replicas: auto` has its own bounds."""
    given = deployment.get("autoscaling_config")
    if deployment.get("num_replicas") == "auto" and (given is None or isinstance(given, dict)):
        return {**AutoscalingConfig.default().model_dump(exclude_unset=True), **(given or {})}
    return given


def _when_deployed(findings: Findings, steps: Steps, deployment: Mapping[str, Any]) -> None:
    """Refuse what Ray refuses only at deployment: actor options, and too small bundles."""
    placed = ("placement_group_bundles", "placement_group_strategy", "placement_group_bundle_label_selector")
    options = {key: deployment[key] for key in (*placed, "max_replicas_per_node") if key in deployment}
    actor = deployment.get("ray_actor_options", {})
    where = (*steps, "ray_actor_options")
    try:
        ReplicaConfig.create("deployment", ray_actor_options=dict(actor))
    except (ValueError, TypeError) as error:
        _blame(findings, where, str(error), actor)
        return
    try:
        ReplicaConfig.create("deployment", ray_actor_options=dict(actor), **options)
    except (ValueError, TypeError) as error:
        _blame(findings, steps, str(error), deployment)
    env = actor.get("runtime_env") or {}
    _check_env(findings, (*where, "runtime_env"), env)
    if isinstance(actors := deployment.get("deployment_actors"), list):
        _validate(findings, steps, DeploymentConfig, {"deployment_actors": actors})


def _check_env(findings: Findings, steps: Steps, env: Mapping[str, Any]) -> None:
    """Validate the values in a runtime environment; the rest names files and packages elsewhere."""
    for key in ("env_vars", "config"):
        if key in env and findings.are_none((*steps, key)):
            try:
                RuntimeEnv(**{key: env[key]})
            except (ValueError, TypeError, AttributeError) as error:
                findings.refuse((*steps, key), " ".join(str(error).split()))


def _without_imports(value: Any) -> Any:
    """Return a copy without the import paths whose code Ray's models would run."""
    if isinstance(value, dict):
        return {key: _without_imports(child) for key, child in value.items() if key not in IMPORTED}
    return [_without_imports(child) for child in value] if isinstance(value, list) else value


def _validate(findings: Findings, steps: Steps, model: Any, value: Any) -> bool:
    try:
        model.model_validate(_without_imports(value))
    except ValidationError as error:
        for problem in error.errors():
            _note(findings, steps, value, problem)
        return False
    # Ray's validators assume types; whatever they raise, the value is invalid.
    except Exception as error:
        if findings.are_none(steps):
            findings.refuse(steps, f"Ray refuses this: {' '.join(str(error).split())}")
        return False
    return True


def _check_plain(findings: Findings, steps: Steps, value: Any, parts: list[Any]) -> None:
    """Refuse what pydantic would accept or run: yes for 1, and the import path of code."""
    if steps[-1] in IMPORTED and not (isinstance(value, str) and re.fullmatch(r"\w+([.:]\w+)+", value)):
        findings.refuse(steps, f"expected an import path, such as package.module:name (got {value!r})")
    if isinstance(value, bool) and (int in parts or float in parts) and bool not in parts:
        findings.refuse(steps, f"expected a number (got {value}, which YAML reads for yes and no)")


def _is_model(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)


def _note(findings: Findings, steps: Steps, value: Any, problem: Any) -> None:
    # In a union pydantic also names the branch that it tried, such as dict[any,any].
    loc = [step for step in problem["loc"] if isinstance(step, int) or step.isidentifier()]
    while loc and problem["type"] != "missing" and not _has(value, loc):
        loc.pop()
    at = (*steps, *loc)
    if problem["type"] == "extra_forbidden":
        # The check of keys reports this with a better message.
        return
    if problem["type"] == "missing":
        findings.miss(at[:-1], str(loc[-1]), "Ray requires it")
        return
    given = problem["input"]
    message = re.sub(r"\{(<\w+\.\w+: '\w+'>(, )?)+\}", _members, problem["msg"].removeprefix("Value error, "))
    if isinstance(given, dict | list):
        inner = value
        for step in loc:
            inner = inner[step]
        _blame(findings, at, message, inner)
        return
    quotes = problem["type"] == "string_type" and isinstance(given, bool | int | float)
    findings.refuse(at, f"{message} (got {given!r}){'; put it in quotes' if quotes else _meant(problem)}")


def _members(shown: re.Match[str]) -> str:
    """Format the values of an enumeration that Ray shows in Python's notation."""
    return " or ".join(sorted(re.findall(r"'(\w+)'", shown[0]), reverse=True))


def _has(value: Any, loc: list[Any]) -> bool:
    for step in loc:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _meant(problem: Any) -> str:
    known = re.findall(r"'([^']+)'", str(problem.get("ctx", {}).get("expected", "")))
    hint = did_you_mean(str(problem["input"]), known)
    return f"; {hint}" if hint else ""


def _blame(findings: Findings, steps: Steps, message: str, given: Any) -> None:
    """Refuse a combination of values, at the first key that the message mentions."""
    named = [word for word in re.findall(r"\w+", message) if isinstance(given, dict) and word in given]
    findings.refuse((*steps, *named[:1]), message.rstrip(".!"))
