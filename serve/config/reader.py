"""Strict reader of `cluster.yaml`: refuses misspelt keys, which Ray Serve silently drops."""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serve.config import application as ours
from serve.config.application import OUR_APPLICATION
from serve.config.diagnostics import Findings
from serve.config.known_keys import APPLICATION, OURS, POOLS, Levels, check_keys
from serve.config.pools import NodePool, read_pools
from serve.config.scaling import KWARGS, Steady
from serve.config.sizes import Size, check_room, check_size
from serve.config.yaml_positions import ConfigRefused, Document, Finding, Steps
from serve.contract.errors import TabrankError
from serve.contract.typed_reader import Level

OUR_POLICY = ("serve.config.scaling:Steady", "serve.config.scaling.Steady")
OUR_EXPORTERS = ("serve.http.tracing:to_file", "serve.http.tracing:to_otlp")
# Every address of the machine.
OPEN = ("0.0.0.0", "::")
# Thresholds of difflib's ratio: an import path this similar to ours is a typo of it. An import path
# in a user's own package must be even more similar.
SIMILAR, VERY_SIMILAR = 0.8, 0.9


@dataclass(frozen=True)
class Config:
    """A `cluster.yaml` whose keys and values are all checked.

    `serve` is the part for Ray Serve as read, without defaults filled in.
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
        raise TabrankError(f"{path}: {reason}; name a Ray Serve config file such as cluster.yaml") from None
    findings = Findings(Document(path, raw))
    document = dict(findings.document.value)
    with warnings.catch_warnings():
        # Ray warns about its own fields, and about metrics_interval_s, which has no replacement.
        warnings.simplefilter("ignore")
        pools, sizes = _check(findings, document)
    document.pop("nodes", None)
    if findings.refusals:
        raise ConfigRefused(findings.refusals, findings.warnings)
    digest = hashlib.sha256(raw).hexdigest()
    return Config(path.resolve(), document, pools, digest, tuple(findings.warnings), tuple(sizes))


def parse(path: Path, raw: bytes) -> dict[str, Any]:
    """Return the mapping in a YAML file without checks, except that duplicate keys are refused.

    PyYAML would take the last of the duplicates.
    """
    document = Document(path, raw)
    if refusals := [problem for problem in Findings(document).refusals if "comes twice" in problem.detail]:
        raise ConfigRefused(refusals)
    return document.value


def _check(findings: Findings, document: Mapping[str, Any]) -> tuple[dict[str, NodePool], list[Size]]:
    # Importing Ray takes a second; only readers of a configuration pay for it.
    from serve.config.ray_schema import check_values, ray_levels

    _check_keys(findings, document, ray_levels())
    applications = document.get("applications")
    _check_unique(findings, ("applications",), applications, "name")
    _check_unique(findings, ("applications",), applications, "route_prefix", "/")
    check_values(findings, {key: value for key, value in document.items() if key != "nodes"})
    pools = read_pools(findings, document)
    http = document.get("http_options", {})
    others = [app for app in _mappings(applications) if not _is_ours(app)]
    _check_http(findings, http, bool(others))
    _check_ways_in(findings, document)
    _check_exporter(findings, document.get("tracing_config"))
    timeout_s = http.get("request_timeout_s") if findings.are_none(("http_options",)) else None
    host = str(http.get("host", OPEN[0])) if isinstance(http, dict) else OPEN[0]
    file = ours.FileContext(sum(pool.max_nodes for pool in pools.values()), timeout_s, host)
    sizes: list[Size] = []
    for i, application in enumerate(_mappings(applications)):
        sizes += _check_application(findings, ("applications", i), application, file)
    if pools and findings.are_none(("applications",)) and findings.are_none(("nodes",)):
        check_room(findings, sizes, pools)
    return pools, sizes


def _check_application(
    findings: Findings, steps: Steps, application: Mapping[str, Any], file: ours.FileContext
) -> list[Size]:
    """Check the rules within one application; return the sizes of its deployments."""
    from serve.config.ray_schema import size

    here = (*steps, "deployments")
    deployments = _mappings(application.get("deployments"))
    _check_unique(findings, here, deployments, "name")
    _check_import(findings, (*steps, "import_path"), application)
    sizes = [size((*here, j), one) for j, one in enumerate(deployments) if findings.are_none((*here, j))]
    for one in sizes:
        check_size(findings, one)
    for j, deployment in enumerate(deployments):
        _check_policy(findings, (*here, j, "autoscaling_config", "policy"), deployment)
    if _is_ours(application):
        named = [deployment.get("name") for deployment in deployments]
        sizes += [size(here, {"name": name}) for name in ours.DEPLOYMENTS if name not in named]
        ours.check(findings, steps, application, sizes, file)
    return sizes


def _check_policy(findings: Findings, steps: Steps, deployment: Mapping[str, Any]) -> None:
    """Check the arguments of our own autoscaling policy; other policies are not checked."""
    scaling = deployment.get("autoscaling_config")
    policy = scaling.get("policy") if isinstance(scaling, dict) else None
    if not isinstance(policy, dict):
        return
    _refuse_typo(findings, (*steps, "policy_function"), policy.get("policy_function"), OUR_POLICY)
    if policy.get("policy_function") not in OUR_POLICY:
        return
    given = policy.get("policy_kwargs") or {}
    steps = (*steps, "policy_kwargs")
    check_keys(findings, given, {(): KWARGS}, {(): KWARGS}, steps)
    if findings.are_none(steps):
        try:
            Steady(**given)
        except (TypeError, ValueError) as error:
            findings.refuse((*steps, *given), str(error))


def _is_ours(application: object) -> bool:
    return isinstance(application, dict) and application.get("import_path") == OUR_APPLICATION


def _check_keys(findings: Findings, document: Mapping[str, Any], levels: dict[Level, list[str]]) -> None:
    """Refuse unknown keys at every level; in `args` and `user_config` only of our application."""
    levels[()] = [*levels[()], "nodes"]
    everywhere: Levels = {**levels, **POOLS, **OURS}
    others = {key: value for key, value in document.items() if key != "applications"}
    check_keys(findings, others, {**levels, **POOLS}, everywhere)
    for i, application in enumerate(_mappings(document.get("applications"))):
        known = {**levels, **OURS} if _is_ours(application) else levels
        check_keys(findings, application, known, everywhere, ("applications", i), APPLICATION)


def _check_http(findings: Findings, http: Any, has_others: bool) -> None:
    """Check the listening address; `has_others`: other applications, without keys, run too."""
    if not isinstance(http, dict):
        return
    port = http.get("port")
    if isinstance(port, int) and not 0 < port < 65_536:
        findings.refuse(("http_options", "port"), f"a port is from 1 to 65535 (got {port})")
    for key in ("ssl_keyfile", "ssl_certfile"):
        if http.get(key) is not None:
            findings.warn(
                ("http_options", key), "HAProxy needs plain HTTP to its replicas; end TLS before it"
            )
    host = http.get("host", OPEN[0])
    if host == "":
        findings.refuse(
            ("http_options", "host"), "an empty host means every address; give 127.0.0.1, or 0.0.0.0"
        )
    if host in OPEN and has_others:
        findings.warn(
            ("http_options", "host"),
            f"{host}{'' if 'host' in http else ', the default,'} admits everyone who reaches this machine, "
            "without authentication; give 127.0.0.1, or the address of a private network",
        )


def _check_ways_in(findings: Findings, document: Mapping[str, Any]) -> None:
    """Refuse a file without applications or proxy: Ray accepts it, but `up` would hang."""
    if document.get("applications") == []:
        findings.refuse(("applications",), f"the list is empty; add one with import_path: {OUR_APPLICATION}")
    if document.get("proxy_location") == "Disabled":
        findings.refuse(("proxy_location",), "Disabled serves no requests; use HeadOnly, or EveryNode")


def _check_exporter(findings: Findings, tracing: Any) -> None:
    if isinstance(tracing, dict):
        steps = ("tracing_config", "exporter_import_path")
        _refuse_typo(findings, steps, tracing.get("exporter_import_path"), OUR_EXPORTERS)


def _refuse_typo(findings: Findings, steps: Steps, given: Any, ours: Sequence[str]) -> None:
    """Refuse an import path that our package does not have, or that is almost one of ours."""
    if not isinstance(given, str) or given in ours or not findings.are_none(steps):
        return
    likeness = {name: difflib.SequenceMatcher(None, given, name).ratio() for name in ours}
    nearest = max(likeness, key=lambda name: likeness[name])
    if given.startswith("serve.") or likeness[nearest] >= VERY_SIMILAR:
        findings.refuse(steps, f"there is no {given!r}; did you mean {nearest!r}?")


def _check_import(findings: Findings, steps: Steps, application: Mapping[str, Any]) -> None:
    """Refuse an import path that is almost ours; warn if its module is not installed here."""
    given = application.get("import_path")
    if not isinstance(given, str) or given == OUR_APPLICATION or not findings.are_none(steps):
        return
    if difflib.SequenceMatcher(None, given, OUR_APPLICATION).ratio() >= SIMILAR:
        findings.refuse(steps, f"there is no {given!r}; did you mean {OUR_APPLICATION!r}?")
        return
    module = given.partition(":")[0] if ":" in given else given.rpartition(".")[0]
    brought = {"working_dir", "py_modules"} & set(application.get("runtime_env", {}))
    if not brought and not _is_found(module, findings.document.path.resolve().parent):
        findings.warn(steps, f"there is no module {module!r} here; is it on every node (got {given!r})?")


def _is_found(module: str, folder: Path) -> bool:
    """Return True if a replica could import the module; nothing is imported to find out."""
    top, *parts = module.split(".")
    spec = PathFinder.find_spec(top, [str(folder)]) or find_spec(top)
    for part in parts:
        spec = spec and PathFinder.find_spec(part, spec.submodule_search_locations or [])
    return spec is not None


def _check_unique(findings: Findings, steps: Steps, items: Any, key: str, default: str | None = None) -> None:
    """Refuse mappings of a list that have the same value for a key."""
    first: dict[Any, int] = {}
    for i, item in enumerate(items if isinstance(items, list) else []):
        value = item.get(key, default) if isinstance(item, dict) else None
        if not isinstance(value, str):
            continue
        if value in first:
            owner = f"{steps[-1]}[{first[value]}]"
            findings.refuse(
                (*steps, i, key),
                f"{key} {value!r} is already used by {owner}; give another value, or remove one",
            )
        first.setdefault(value, i)


def _mappings(items: Any) -> list[dict[str, Any]]:
    """Return the items of a list, with empty mappings for other items, so that indices stay."""
    return [item if isinstance(item, dict) else {} for item in items] if isinstance(items, list) else []
