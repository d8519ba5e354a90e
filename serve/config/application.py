"""Validation of our application in `cluster.yaml`: its `args`, deployments and live settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from serve.config.diagnostics import Findings
from serve.config.known_keys import suggest
from serve.config.settings import CANARY, AppArgs, UserConfig, is_loopback
from serve.config.sizes import Size
from serve.config.storage import check_storage
from serve.config.yaml_positions import Steps, show
from serve.contract.errors import TabrankError
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import SHIPPED, Surface
from serve.log.events import MAX_CALL_BYTES
from serve.model.artifact import require

OUR_APPLICATION = "serve.app:build"
OUR_INGRESS = "FeatureFetch"
SCORER, WRITER = "Scorer", "Ingest"
DEPLOYMENTS = (OUR_INGRESS, SCORER, WRITER)
# `up` makes a replica behind HAProxy wait 2 s before it stops; Ray's own default is 30 s.
DRAIN_S = 2.0
DRAIN_ENV = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"


@dataclass(frozen=True)
class FileContext:
    """Values from the rest of the file that the rules of our application need."""

    # The most nodes; 0 if the file does not say.
    num_nodes: int
    # The longest time that a request may take.
    timeout_s: float | None
    # The address that the service listens on.
    host: str
    # The applications found so far, by surface and by log.
    owners: dict[str, str] = field(default_factory=dict)
    logs: dict[Path, str] = field(default_factory=dict)


def check(
    findings: Findings, steps: Steps, application: Mapping[str, Any], sizes: Sequence[Size], file: FileContext
) -> None:
    """Check the parts of our application that Ray does not read, and the rules between its parts.

    `sizes` are those of its valid deployments.
    """
    base = findings.document.path.resolve().parent
    deployments = application.get("deployments")
    knobs, knobs_at = cast(UserConfig | None, UserConfig()), steps
    for i, deployment in enumerate(deployments if isinstance(deployments, list) else []):
        here = (*steps, "deployments", i)
        if not isinstance(deployment, dict) or not isinstance(name := deployment.get("name"), str):
            continue
        _check_name(findings, here, name, deployment)
        if name == OUR_INGRESS:
            knobs_at = (*here, "user_config")
            knobs = findings.read(
                UserConfig, knobs_at, deployment.get("user_config") or {}, "give it a value"
            )
    if knobs is not None and not knobs.api_keys and not is_loopback(file.host):
        _refuse_open(findings, file.host)
    given = application.get("args", {})
    args = findings.read(AppArgs, (*steps, "args"), given, "name a shipped surface, such as spaces")
    if args is None:
        return
    check_storage(findings, (*steps, "args"), args, base, file.num_nodes)
    _check_log(findings, steps, base / args.log, file.logs)
    surface = _read_surface(findings, (*steps, "args", "surface"), args, base)
    if surface is not None:
        _check_owner(findings, steps, surface.name, file.owners)
    if knobs is None:
        return
    if surface is not None:
        _check_batch(findings, (*knobs_at, "batch_candidates"), knobs, surface)
    if knobs.experiment.versions:
        _check_versions(findings, knobs_at, knobs, base / args.models)
    named = {size.name: size for size in sizes}
    if set(DEPLOYMENTS) <= set(named):
        _check_sizes(findings, named, args, knobs, file.timeout_s)


def _refuse_open(findings: Findings, host: str) -> None:
    options = findings.document.value.get("http_options")
    default = "" if isinstance(options, dict) and "host" in options else ", the default,"
    findings.refuse(
        ("http_options", "host"),
        f"{host}{default} admits everyone who reaches this machine, without authentication; add the callers to "
        f"user_config.api_keys of {OUR_INGRESS} (`python -m serve key` creates a key), or set 127.0.0.1",
    )


def _check_owner(findings: Findings, steps: Steps, surface: str, owners: dict[str, str]) -> None:
    here = show(steps)
    # Its viewers would be in two experiments, and its store would have two writers.
    if surface in owners:
        findings.refuse(
            (*steps, "args", "surface"),
            f"the surface {surface!r} already has an application, {owners[surface]}; a surface has one "
            "application, with one experiment",
        )
    owners.setdefault(surface, here)


def _check_log(findings: Findings, steps: Steps, log: Path, owners: dict[Path, str]) -> None:
    log = Path(os.path.normpath(log))
    # Each writer numbers its records from 1, and the files are named by the numbers.
    if log in owners:
        findings.refuse(
            (*steps, "args", "log"),
            f"the log {str(log)!r} is already used by {owners[log]}, and each would overwrite the other's files; "
            "give each application its own folder",
        )
    owners.setdefault(log, show(steps))


def _read_surface(findings: Findings, steps: Steps, args: AppArgs, base: Path) -> Surface | None:
    """Load the surface that the arguments name; None if it is refused."""
    shipped = [path.stem for path in SHIPPED.glob("*.toml")]
    if not args.surface.endswith(".toml") and args.surface not in shipped:
        hint = suggest(args.surface, shipped)
        findings.refuse(steps, f"there is no surface {args.surface!r}; {hint}, or give a .toml path")
        return None
    try:
        return args.load_surface(base)
    except TabrankError as error:
        findings.refuse(steps, str(error).replace("\n", "; "))
        return None


def _check_name(findings: Findings, steps: Steps, name: str, deployment: Mapping[str, Any]) -> None:
    """Refuse deployments that are not ours, and live settings outside the ingress."""
    if name not in DEPLOYMENTS:
        hint = suggest(name, DEPLOYMENTS)
        findings.refuse((*steps, "name"), f"the application has no deployment {name!r}; {hint}")
    elif name != OUR_INGRESS and deployment.get("user_config") is not None:
        findings.refuse(
            (*steps, "user_config"), f"{name} has no live settings; put them under {OUR_INGRESS}", key=True
        )


def _check_versions(findings: Findings, steps: Steps, knobs: UserConfig, models: Path) -> None:
    """Refuse arms and a shadow whose version is not published. `steps` lead to `user_config`."""
    if knobs.shadow is not None and knobs.shadow.version != CANARY:
        try:
            require(models, knobs.shadow.version, "")
        except TabrankError as error:
            findings.refuse((*steps, "shadow", "version"), str(error).removeprefix(": "))
    for arm, version in knobs.experiment.versions.items():
        here = (*steps, "experiment", "arms", arm, "scorer")
        try:
            require(models, version, "")
        except TabrankError as error:
            findings.refuse(here, str(error).removeprefix(": "))


def _check_batch(findings: Findings, steps: Steps, knobs: UserConfig, surface: Surface) -> None:
    """Refuse batches that exceed gRPC's limit on a message from replica to replica."""
    row_bytes = Features(Schema(surface)).columns.row_bytes
    most = MAX_CALL_BYTES // row_bytes
    if knobs.batch_candidates > most:
        findings.refuse(
            steps,
            f"a full batch (got {knobs.batch_candidates} candidates of {row_bytes} bytes) exceeds the longest "
            f"message between replicas; give at most {most}",
        )


def _check_sizes(
    findings: Findings, sizes: Mapping[str, Size], args: AppArgs, knobs: UserConfig, timeout_s: float | None
) -> None:
    """Check the rules between our three deployments, the live settings and the HTTP timeout."""
    front, scorer, writer = (sizes[name] for name in DEPLOYMENTS)
    fewest, most = writer.min_replicas, writer.max_replicas
    if (fewest, most) != (1, 1):
        findings.refuse(
            (
                *writer.steps,
                "num_replicas" if writer.target_ongoing_requests is None else "autoscaling_config",
            ),
            f"{WRITER} must have one replica (got {most if fewest == most else f'{fewest} to {most}'}): "
            "a second one would only fence off the first",
        )
    _check_slots(findings, front, scorer, knobs)
    _check_deadline(findings, front, knobs.deadline_ms / 1_000, timeout_s)
    if args.backend == "torch" and not scorer.num_gpus:
        findings.warn(
            (*scorer.steps, "ray_actor_options"), "backend torch without num_gpus is slow; use onnx"
        )
    if args.backend == "onnx" and scorer.num_gpus:
        findings.warn(
            (*scorer.steps, "ray_actor_options", "num_gpus"), "backend onnx uses no GPU; take torch"
        )


def _check_slots(findings: Findings, front: Size, scorer: Size, knobs: UserConfig) -> None:
    slots = knobs.slots
    where = (*scorer.steps, "max_ongoing_requests")
    batches = slots * front.max_replicas
    most, fewest = (scorer.max_ongoing_requests * n for n in (scorer.max_replicas, scorer.min_replicas))
    load = (
        f"{front.max_replicas} replicas of {OUR_INGRESS} with {slots} slots send {batches} batches at once, "
        f"and {SCORER} takes"
    )
    if batches > most:
        findings.refuse(
            where, f"{load} {most}: slots wait on each other; raise max_ongoing_requests to {batches}"
        )
    elif batches > fewest:
        findings.warn(
            where, f"{load} {fewest} at its fewest replicas: slots wait on each other until it scales up"
        )
    if front.max_ongoing_requests < slots:
        findings.refuse(
            (*front.steps, "max_ongoing_requests"),
            f"{slots} slots cannot fill with {front.max_ongoing_requests} requests; raise it, or lower slots",
        )


def _check_deadline(findings: Findings, front: Size, deadline_s: float, timeout_s: float | None) -> None:
    where = (*front.steps, "user_config", "deadline_ms")
    # Ray accepts "9" as a number.
    timeout_s = None if timeout_s is None else float(timeout_s)
    if timeout_s is not None and deadline_s >= timeout_s:
        findings.refuse(
            where,
            f"a deadline of {deadline_s * 1_000:g} ms is not below http_options.request_timeout_s ({timeout_s:g}), "
            "so that the request times out first; raise that, or lower this",
        )
    drain_s = float(os.environ.get(DRAIN_ENV, DRAIN_S))
    where = (*front.steps, "graceful_shutdown_timeout_s")
    if front.shutdown_timeout_s < deadline_s:
        findings.refuse(
            where,
            f"a rollout ends requests after {front.shutdown_timeout_s:g} s, but they may take {deadline_s:g} s "
            "(deadline_ms); raise it",
        )
    elif front.shutdown_timeout_s < drain_s + deadline_s:
        findings.warn(
            where,
            f"behind HAProxy a replica waits {drain_s:g} s, and then up to {deadline_s:g} s for its requests: "
            f"{front.shutdown_timeout_s:g} s are not enough for both; raise it",
        )
