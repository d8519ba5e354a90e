"""Strict reader of `cluster.yaml`: refuses misspelt keys, which Ray Serve silently drops."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serve.config import application as ours
from serve.config.application import OUR_APPLICATION
from serve.config.known_keys import APPLICATION, OURS, POOLS, Levels, check_keys
from serve.config.node import Node
from serve.config.pools import NodePool, read_pools
from serve.config.scaling import KWARGS, Steady
from serve.config.sizes import Size, check_room, check_size
from serve.config.yaml_positions import PLACE, ConfigRefused, Document, Finding
from serve.contract.errors import TabrankError, nearest
from serve.contract.typed_reader import Level

OUR_POLICY = ("serve.config.scaling:Steady", "serve.config.scaling.Steady")
OUR_EXPORTERS = ("serve.http.tracing:to_file", "serve.http.tracing:to_otlp")
# Hosts that stand for every address of the machine.
OPEN = ("0.0.0.0", "::")
# Thresholds of difflib's ratio: an import path this similar to ours is a typo of it. An import path
# in a user's own package must be even more similar.
SIMILAR, VERY_SIMILAR = 0.8, 0.9


@dataclass(frozen=True)
class Config:
    """A `cluster.yaml` whose keys and values are all checked.

    `serve` is the part for Ray Serve as read, without defaults filled in. In the `args` of our
    applications, `surface_text` is the text of the surface when it was checked.
    """

    path: Path
    serve: Mapping[str, Any]
    nodes: Mapping[str, NodePool]
    sha256: str
    warnings: tuple[Finding, ...] = ()
    # Sizes of all deployments, including ours that the file does not list.
    sizes: tuple[Size, ...] = ()

    @property
    def host(self) -> str:
        """The address that the service listens on."""
        return str(self.serve.get("http_options", {}).get("host", OPEN[0]))

    @property
    def port(self) -> int:
        """The port that the service listens on."""
        return int(self.serve.get("http_options", {}).get("port", 8000))


def read(path: Path) -> Config:
    """Read and check `cluster.yaml`.

    Raises:
        ConfigRefused: the file has errors; one line each: file, line, column, path, error, remedy.
        TabrankError: the file cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise TabrankError(
            f"{path}: {reason}; name a Ray Serve config file such as cluster.yaml; "
            "`python -m training surface --help` says how to write one for your data"
        ) from None
    document = Document(path, raw)
    # Ray warns about its own fields, and about metrics_interval_s, which has no replacement.
    with warnings.catch_warnings(action="ignore"):
        pools, sizes, texts = _check(Node.root(document))
    document.warnings.sort(key=PLACE)
    if document.refused:
        raise ConfigRefused(document.refusals, document.warnings)
    serve = {key: value for key, value in document.value.items() if key != "nodes"}
    serve["applications"] = [ours.pinned(one, texts) for one in serve["applications"]]
    digest = hashlib.sha256(raw).hexdigest()
    return Config(path.resolve(), serve, pools, digest, tuple(document.warnings), tuple(sizes))


def parse(path: Path, raw: bytes) -> dict[str, Any]:
    """Return the mapping in a YAML file, which is checked as YAML only.

    A key that comes twice is refused, for example: PyYAML would take the last value.
    """
    document = Document(path, raw)
    if document.refused:
        raise ConfigRefused(document.refusals)
    return document.value


def _check(root: Node) -> tuple[dict[str, NodePool], list[Size], dict[str, str]]:
    # Importing Ray takes a second; only readers of a configuration pay for it.
    from serve.config.ray_schema import check_values, ray_levels

    applications, http = root["applications"], root["http_options"]
    _check_keys(root, ray_levels())
    _check_unique(applications, "name")
    _check_unique(applications, "route_prefix", "/")
    check_values(root)
    pools = read_pools(root)
    options = http.value if isinstance(http.value, dict) else {}
    host = options.get("host", OPEN[0])
    host_text = f"{host}{'' if 'host' in options else ', the default,'}"
    _check_http(http, options)
    if host in OPEN and not all(map(_is_ours, applications.items())):
        http["host"].warn(
            f"{host_text} admits everyone who reaches this machine, without authentication; give 127.0.0.1, or the "
            "address of a private network"
        )
    _check_ways_in(root)
    _refuse_unknown(root["tracing_config"]["exporter_import_path"], OUR_EXPORTERS)
    timeout_s = options.get("request_timeout_s") if http.is_sound else None
    num_nodes = sum(pool.max_nodes for pool in pools.values())
    file = ours.FileContext(num_nodes, timeout_s, str(host), host_text)
    sizes = [size for application in applications.items() for size in _check_application(application, file)]
    if pools and applications.is_sound and root["nodes"].is_sound:
        check_room(root["nodes"], sizes, pools)
    return pools, sizes, file.texts


def _check_application(application: Node, file: ours.FileContext) -> list[Size]:
    """Check the rules within one application; return the sizes of its deployments."""
    from serve.config.ray_schema import size

    deployments = application["deployments"]
    _check_unique(deployments, "name")
    _refuse_typo(application["import_path"], [OUR_APPLICATION], SIMILAR)
    sizes = [size(one, one.value) for one in deployments.items() if one.is_sound]
    for one in sizes:
        check_size(one)
    for deployment in deployments.items():
        _check_policy(deployment["autoscaling_config"]["policy"])
    if _is_ours(application):
        named = [deployment["name"].value for deployment in deployments.items()]
        sizes += [size(deployments, {"name": name}) for name in ours.DEPLOYMENTS if name not in named]
        ours.check(application, sizes, file)
    return sizes


def _check_policy(policy: Node) -> None:
    """Check the arguments of our own autoscaling policy; other policies are not checked."""
    function, kwargs = policy["policy_function"], policy["policy_kwargs"]
    _refuse_unknown(function, OUR_POLICY)
    if function.value not in OUR_POLICY:
        return
    check_keys(kwargs, {(): KWARGS}, {(): KWARGS})
    if kwargs.is_sound:
        try:
            Steady(**kwargs.value or {})
        except ValueError as error:
            kwargs[KWARGS[0]].refuse(str(error))


def _is_ours(application: Node) -> bool:
    return bool(application["import_path"].value == OUR_APPLICATION)


def _check_keys(root: Node, levels: dict[Level, list[str]]) -> None:
    """Refuse unknown keys at every level; in `args` and `user_config` only of our application."""
    levels[()] = [*levels[()], "nodes"]
    everywhere: Levels = {**levels, **POOLS, **OURS}
    others = {key: value for key, value in root.value.items() if key != "applications"}
    check_keys(replace(root, value=others), {**levels, **POOLS}, everywhere)
    for application in root["applications"].items():
        known = {**levels, **OURS} if _is_ours(application) else levels
        check_keys(application, known, everywhere, APPLICATION)


def _check_http(http: Node, options: Mapping[str, Any]) -> None:
    port = options.get("port")
    if isinstance(port, int) and not 0 < port < 65_536:
        http["port"].refuse(f"a port is from 1 to 65535 (got {port})")
    for key in ("ssl_keyfile", "ssl_certfile"):
        if options.get(key) is not None:
            http[key].warn("HAProxy needs plain HTTP to its replicas; end TLS before it")
    if options.get("host") == "":
        http["host"].refuse("an empty host means every address; give 127.0.0.1, or 0.0.0.0")


def _check_ways_in(root: Node) -> None:
    """Refuse a file without applications or proxy: Ray accepts it, but `up` would hang."""
    if root["applications"].value == []:
        root["applications"].refuse(f"the list is empty; add one with import_path: {OUR_APPLICATION}")
    if root["proxy_location"].value == "Disabled":
        root["proxy_location"].refuse("Disabled serves no requests; use HeadOnly, or EveryNode")


def _refuse_unknown(at: Node, ours: Sequence[str]) -> None:
    """Refuse an import path that our package does not have, or that is almost one of ours."""
    is_in_our_package = str(at.value).startswith("serve.")
    _refuse_typo(at, ours, 0.0 if is_in_our_package else VERY_SIMILAR)


def _refuse_typo(at: Node, ours: Sequence[str], similar: float) -> None:
    """Refuse an import path that is almost one of ours, by difflib's ratio."""
    given = at.value
    if isinstance(given, str) and given not in ours and (near := nearest(given, ours, similar)):
        at.refuse(f"there is no {given!r}; did you mean {near!r}?")


def _check_unique(nodes: Node, key: str, default: str | None = None) -> None:
    """Refuse mappings of a list that have the same value for a key."""
    first: dict[str, int] = {}
    for i, item in enumerate(nodes.items()):
        value = item.value.get(key, default) if isinstance(item.value, dict) else None
        if isinstance(value, str) and first.setdefault(value, i) != i:
            owner = f"{nodes.steps[-1]}[{first[value]}]"
            item[key].refuse(f"{key} {value!r} is already used by {owner}; give another value, or remove one")
