"""The strict reader of `cluster.yaml`: a misspelt key, which Ray Serve drops without a word, is refused."""

from __future__ import annotations

import hashlib
import json
import typing
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from serve.errors import TabrankError, unknown_key
from serve.strict import table, whole

OUR_APPLICATION = "serve.app:build"
OUR_INGRESS = "FeatureFetch"
# What Serve reads once, when it starts; all else in the file can be deployed in place.
FIXED_KEYS = ("proxy_location", "http_options", "grpc_options", "controller_options", "tracing_config")


@dataclass(frozen=True)
class NodePool:
    """Machines of one kind: what each offers, and how many there may be."""

    num_cpus: int
    min_nodes: int
    max_nodes: int
    num_gpus: int = 0


@dataclass(frozen=True)
class Config:
    """A `cluster.yaml` in which every key and value was checked.

    `serve` is the part that Ray Serve takes, as read (no defaults filled in).
    """

    path: Path
    serve: Mapping[str, Any]
    nodes: Mapping[str, NodePool]
    sha256: str

    @property
    def host(self) -> str:
        """The address that the service listens on."""
        return str(self.serve.get("http_options", {}).get("host", "0.0.0.0"))

    @property
    def port(self) -> int:
        """The port that the service listens on."""
        return int(self.serve.get("http_options", {}).get("port", 8000))

    @property
    def fixed_sha256(self) -> str:
        """A digest of what Serve reads only when it starts."""
        values = [self.serve.get(key) for key in FIXED_KEYS]
        return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


def read(path: Path) -> Config:
    """Read and check `cluster.yaml`.

    Raises TabrankError naming the file, the key's path in it, the value and the remedy.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise TabrankError(f"{path}: {reason}; name a Ray Serve config file such as cluster.yaml") from None
    document = parse(path, raw)
    nodes = _nodes(f"{path}: nodes", document.pop("nodes", {}))
    with warnings.catch_warnings():
        # Ray warns of its own field declarations, and of metrics_interval_s, which nothing has replaced yet.
        warnings.simplefilter("ignore")
        _check_serve(path, document)
    return Config(path.resolve(), document, nodes, hashlib.sha256(raw).hexdigest())


def parse(path: Path, raw: bytes) -> dict[str, Any]:
    """The mapping in a YAML file; a key that comes twice is refused, of which PyYAML silently takes the last."""
    try:
        _refuse_repeated(yaml.compose(raw, yaml.SafeLoader), set())
        document = yaml.safe_load(raw)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise TabrankError(f"{place}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TabrankError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise TabrankError(f"{path}: a mapping with the key 'applications' was expected at the top")
    return document


def _refuse_repeated(node: yaml.Node | None, seen: set[int]) -> None:
    if node is None or id(node) in seen:
        return
    seen.add(id(node))  # an alias may lead back
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_repeated(child, seen)
    if isinstance(node, yaml.MappingNode):
        names = set()
        for key, child in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in names:
                problem = f"the key {key.value!r} comes twice; leave one of them out"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if name is not None:
                names.add(name)
            _refuse_repeated(child, seen)


def _nodes(where: str, pools: object) -> dict[str, NodePool]:
    known = [field.name for field in fields(NodePool)]
    checked = {}
    for name, values in table(pools, where).items():
        here = f"{where}.{name}"
        sizes = table(values, here, known, [key for key in known if key != "num_gpus"])
        pool = NodePool(**{key: whole(value, f"{here}.{key}", 0, 100_000) for key, value in sizes.items()})
        if pool.min_nodes > pool.max_nodes:
            raise TabrankError(f"{here}: min_nodes ({pool.min_nodes}) is above max_nodes ({pool.max_nodes})")
        checked[name] = pool
    return checked


def _check_serve(path: Path, document: dict[str, Any]) -> None:
    # Ray takes a second to import; only who reads a configuration pays for it.
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    _check_keys(path, "", document, ServeDeploySchema)
    _validate(path, "", ServeDeploySchema, document)
    owners: dict[str, str] = {}  # the application of each surface
    for i, application in enumerate(document["applications"]):
        where = f"applications[{i}]"
        for j, deployment in enumerate(application.get("deployments", [])):
            here = f"{where}.deployments[{j}]"
            scaling = deployment.get("autoscaling_config")
            if scaling is not None:
                # Serve's own schema takes any mapping here and fails, or does not, when it deploys.
                checked = _validate(path, f"{here}.autoscaling_config", AutoscalingConfig, scaling)
                limit = deployment.get("max_ongoing_requests")
                if limit is not None and checked.target_ongoing_requests >= limit:
                    target = f"target_ongoing_requests ({checked.target_ongoing_requests:g})"
                    raise TabrankError(
                        f"{path}: {here}: {target} must be below max_ongoing_requests ({limit}),"
                        f" or the deployment never scales up"
                    )
        if application["import_path"] == OUR_APPLICATION:
            surface = _check_ours(path, where, application)
            if surface in owners:  # its viewers would be in two experiments, its store have two writers
                raise TabrankError(
                    f"{path}: {where}: the surface {surface!r} has an application already, "
                    f"{owners[surface]}; a surface has one, with one experiment"
                )
            owners[surface] = where


def _check_ours(path: Path, where: str, application: Mapping[str, Any]) -> str:
    """Check what Ray passes on unread, the arguments of our builder and the live knobs of our ingress; its surface."""
    from serve.artifact import require
    from serve.settings import AppArgs, UserConfig

    args = AppArgs.from_mapping(application.get("args", {}), f"{path}: {where}.args")
    for j, deployment in enumerate(application.get("deployments", [])):
        if deployment["name"] == OUR_INGRESS and deployment.get("user_config") is not None:
            here = f"{path}: {where}.deployments[{j}].user_config"
            experiment = UserConfig.from_mapping(deployment["user_config"], here).experiment
            for arm, version in experiment.versions.items():
                require(path.parent / args.models, version, f"{here}.experiment.arms.{arm}.scorer")
    return args.load_surface(path.parent).name


def _at(path: Path, where: str) -> str:
    return f"{path}: {where}" if where else str(path)


def _check_keys(path: Path, where: str, value: Any, model: Any) -> None:
    """Refuse a key that the pydantic `model` does not declare, at any depth."""
    if not isinstance(value, Mapping):
        return  # a value of the wrong type is for the model itself to refuse
    for key, child in value.items():
        if key not in model.model_fields:
            raise TabrankError(unknown_key(_at(path, where), str(key), model.model_fields))
        here = f"{where}.{key}" if where else str(key)
        for nested in _models(model.model_fields[key].annotation):
            if isinstance(child, list):
                for i, item in enumerate(child):
                    _check_keys(path, f"{here}[{i}]", item, nested)
            else:
                _check_keys(path, here, child, nested)


def _models(annotation: Any) -> Iterator[Any]:
    """The pydantic models in an annotation such as `Optional[Union[Dict, AutoscalingConfig]]`."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _validate(path: Path, where: str, model: Any, value: Any) -> Any:
    from pydantic import ValidationError

    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        # In a union pydantic also names the branch that it tried, such as dict[any,any].
        loc = [step for step in first["loc"] if "[" not in str(step)]
        steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc]
        place = _at(path, (where + "".join(steps)).lstrip("."))
        given = first["input"]
        got = "" if isinstance(given, Mapping | list) else f" (got {given!r})"
        message = first["msg"].removeprefix("Value error, ")
        raise TabrankError(f"{place}: {message}{got}") from None
