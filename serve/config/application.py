"""Validation of our application in `cluster.yaml`: its `args`, deployments and live settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from serve.config.diagnoses import DIAGNOSES, DeclaredService
from serve.config.node import Node
from serve.config.settings import AppArgs, UserConfig, is_loopback
from serve.config.sizes import Size
from serve.config.storage import check_storage
from serve.config.yaml_positions import show
from serve.contract.errors import TabrankError, suggest
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import Surface
from serve.log.events import MAX_CALL_BYTES
from serve.storage.bucket import is_bucket, place

OUR_APPLICATION = "serve.app:build"
OUR_INGRESS = "FeatureFetch"
SCORER, WRITER = "Scorer", "Ingest"
DEPLOYMENTS = (OUR_INGRESS, SCORER, WRITER)


@dataclass(frozen=True)
class FileContext:
    """Values from the rest of the file that the rules of our application need."""

    # The largest number of nodes; 0 if the file does not state it.
    num_nodes: int
    # The longest time that a request may take.
    timeout_s: float | None
    # The address that the service listens on, and how a message names it.
    host: str
    host_text: str
    # The applications found so far, by surface and by log.
    owners: dict[str | Path, str] = field(default_factory=dict)
    # The text of each surface, by the name that `args` give it.
    texts: dict[str, str] = field(default_factory=dict)


def check(application: Node, sizes: Sequence[Size], file: FileContext) -> None:
    """Check the parts of our application that Ray does not read, and how its parts fit together.

    `sizes` has the sizes of the deployments that are valid.
    """
    base = application.document.path.resolve().parent
    knobs: UserConfig | None = UserConfig()
    live = application
    for deployment in application["deployments"].items():
        if not isinstance(name := deployment["name"].value, str):
            continue
        _check_name(deployment, name)
        if name == OUR_INGRESS:
            live = deployment["user_config"]
            knobs = live.read(UserConfig, live.value or {}, "give it a value")
    if knobs is not None and not knobs.api_keys and not is_loopback(file.host):
        Node.root(application.document)["http_options"]["host"].refuse(
            f"{file.host_text} admits everyone who reaches this machine, without authentication; add the callers to "
            f"user_config.api_keys of {OUR_INGRESS} (`python -m serve key` creates a key), or set 127.0.0.1"
        )
    args_at, here = application["args"], show(application.steps)
    args = args_at.read(AppArgs, application.value.get("args", {}), "name a shipped surface, such as spaces")
    if args is None:
        return
    check_storage(args_at, args, file.num_nodes)
    log = place(args.log, base)
    if not is_bucket(args.log):
        log = Path(os.path.normpath(log))
    # Each writer numbers its records from 1 and names its files by these numbers, so that two
    # writers would use the same names.
    if (owner := file.owners.setdefault(log, here)) != here:
        args_at["log"].refuse(
            f"the log {str(log)!r} is already used by {owner}, and each would overwrite the other's files; "
            "give each application its own folder"
        )
    surface = _read_surface(args_at["surface"], args, base)
    if surface is not None:
        file.texts[args.surface] = surface.text
    # With a second application, the surface's viewers would be in two experiments, and its store
    # would have two writers.
    if surface is not None and (owner := file.owners.setdefault(surface.name, here)) != here:
        args_at["surface"].refuse(
            f"the surface {surface.name!r} already has an application, {owner}; a surface has one application, "
            "with one experiment"
        )
    if knobs is None:
        return
    if surface is not None:
        _check_batch(live["max_batch_candidates"], knobs, surface)
        for path, error in knobs.misfits(surface, place(args.models, base)):
            reduce(Node.__getitem__, path, live).refuse(error)
    # The files of a cluster need not be mounted on this machine, so check only those of one
    # machine.
    if surface is not None and file.num_nodes <= 1 and args_at.is_sound:
        features = Features(Schema(surface))
        declared = DeclaredService(args, base, features, knobs, str(application["name"].value))
        for found in declared.file_faults():
            # An unreadable bucket may be that of the models. The cause begins with its place.
            is_of_models = found.cause.startswith(f"{args.models.rstrip('/')}/")
            at = args_at["models" if is_of_models else DIAGNOSES[found.name]["arg"]]
            (at.refuse if found.name == "log_refuses" else at.warn)(str(found))
    named = {size.name: size for size in sizes}
    if set(DEPLOYMENTS) <= set(named):
        _check_size(named, args, knobs, file.timeout_s)


def pinned(application: Mapping[str, Any], texts: Mapping[str, str]) -> Mapping[str, Any]:
    """Return an application; ours gets the text of its surface, which `texts` has by name."""
    if application["import_path"] != OUR_APPLICATION:
        return application
    args = application["args"]
    return {**application, "args": {**args, "surface_text": texts[args["surface"]]}}


def _read_surface(at: Node, args: AppArgs, base: Path) -> Surface | None:
    """Load the surface that the arguments name; None if it is refused."""
    try:
        return args.load_surface(base)
    except TabrankError as error:
        at.refuse(str(error).replace("\n", "; "))
        return None


def _check_name(deployment: Node, name: str) -> None:
    """Refuse deployments that are not ours, and live settings outside the ingress."""
    live = deployment["user_config"]
    if name not in DEPLOYMENTS:
        deployment["name"].refuse(f"the application has no deployment {name!r}{suggest(name, DEPLOYMENTS)}")
    elif name != OUR_INGRESS and live.value is not None:
        live.refuse(f"{name} has no live settings; put them under {OUR_INGRESS}", key=True)


def _check_batch(at: Node, knobs: UserConfig, surface: Surface) -> None:
    """Refuse batches that exceed gRPC's limit on a message from replica to replica."""
    row_bytes = Features(Schema(surface)).columns.row_bytes
    most = MAX_CALL_BYTES // row_bytes
    if knobs.max_batch_candidates > most:
        at.refuse(
            f"a full batch (got {knobs.max_batch_candidates} candidates of {row_bytes} bytes) exceeds the longest "
            f"message between replicas; give at most {most}"
        )


def _check_size(sizes: Mapping[str, Size], args: AppArgs, knobs: UserConfig, timeout_s: float | None) -> None:
    """Check the rules between our three deployments, the live settings and the HTTP timeout."""
    front, scorer, writer = (sizes[name] for name in DEPLOYMENTS)
    fewest, most = writer.min_replicas, writer.max_replicas
    if (fewest, most) != (1, 1):
        scales = writer.target_ongoing_requests is not None
        writer.at["autoscaling_config" if scales else "num_replicas"].refuse(
            f"{WRITER} must have one replica (got {most if fewest == most else f'{fewest} to {most}'}): "
            "a second one would only fence off the first"
        )
    _check_batches(front, scorer, knobs)
    _check_deadline(front, knobs.deadline_ms / 1_000, timeout_s)
    options = scorer.at["ray_actor_options"]
    if args.backend == "torch" and not scorer.num_gpus:
        options.warn("backend torch without num_gpus is slow; use onnx")
    if args.backend == "onnx" and scorer.num_gpus:
        options["num_gpus"].warn("backend onnx uses no GPU; use torch")


def _check_batches(front: Size, scorer: Size, knobs: UserConfig) -> None:
    in_flight = knobs.max_batches_in_flight
    at = scorer.at["max_ongoing_requests"]
    batches = in_flight * front.max_replicas
    most = scorer.max_ongoing_requests * scorer.max_replicas
    if batches > most:
        at.refuse(
            f"{front.max_replicas} replicas of {OUR_INGRESS} send {in_flight} batches each at once "
            f"(max_batches_in_flight), {batches} in all, and {SCORER} takes {most}: they wait on each other; "
            f"raise max_ongoing_requests to {batches}"
        )
    if front.max_ongoing_requests < in_flight:
        front.at["max_ongoing_requests"].refuse(
            f"{front.max_ongoing_requests} requests cannot fill {in_flight} batches; raise it, "
            "or lower max_batches_in_flight"
        )


def _check_deadline(front: Size, deadline_s: float, timeout_s: float | None) -> None:
    # Ray accepts "9" as a number.
    timeout_s = None if timeout_s is None else float(timeout_s)
    if timeout_s is not None and deadline_s >= timeout_s:
        front.at["user_config"]["deadline_ms"].refuse(
            f"a deadline of {deadline_s * 1_000:g} ms is not below http_options.request_timeout_s ({timeout_s:g}), "
            "so that the request times out first; raise that, or lower this"
        )
    at, stop_s = front.at["graceful_shutdown_timeout_s"], front.graceful_shutdown_timeout_s
    if stop_s < deadline_s:
        at.refuse(
            f"a rollout ends requests after {stop_s:g} s, but they may take {deadline_s:g} s (deadline_ms); raise it"
        )
