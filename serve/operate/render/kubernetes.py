"""Render the RayService for KubeRay, with its NetworkPolicy, from `cluster.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.config.pools import HEAD, NodePool
from serve.config.reader import Config
from serve.config.settings import AppArgs
from serve.contract.errors import TabrankError
from serve.operate.render.manifests import HOME, Manifests
from serve.operate.render.options import Kubernetes


def kubernetes(config: Config, options: Kubernetes) -> str:
    """Return the text of both objects; raise TabrankError where pods cannot serve the file."""
    workers = dict(config.nodes)
    head = workers.pop(HEAD, None)
    if head is None:
        raise TabrankError(f"{config.path}: nodes: the pool {HEAD!r} is missing; add it for Ray's controller")
    stores = []
    for i, application in enumerate(config.serve["applications"]):
        if application["import_path"] == OUR_APPLICATION:
            where = f"{config.path}: applications[{i}]"
            args = AppArgs.from_mapping(application["args"], f"{where}.args")
            _refuse_unmounted_paths(f"{where}.args", args, options)
            _refuse_without_keys(where, application)
            if "://" in args.store:
                _refuse_secrets(f"{where}.args", args.store)
                stores.append(args.store)
    several = any(pool.max_nodes for pool in workers.values())
    if several:
        _refuse_excess_replicas(config, workers)
    redis = options.redis or next(map(_server, stores), None)
    if several and not redis:
        raise TabrankError(
            "--redis is missing: name HOST:PORT of the server that keeps Ray's state when the head is lost"
        )
    # A pod listens on all addresses, behind the NetworkPolicy.
    serve = {**config.serve, "http_options": {**config.serve.get("http_options", {}), "host": "0.0.0.0"}}
    if several:
        # Each serving pod runs an HAProxy, and Kubernetes balances over them.
        serve["proxy_location"] = "EveryNode"
    manifests = Manifests(
        options=options,
        head=head,
        workers=workers,
        has_workers=several,
        port=config.port,
        serve_config=yaml.safe_dump(serve, sort_keys=False, allow_unicode=True),
        redis=redis,
        has_store_password=bool(stores),
    )
    comments = "".join(f"# {note}\n" for note in manifests.notes(config.path.name))
    objects = manifests.ray_service(), manifests.network_policy()
    return comments + yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=110, allow_unicode=True)


class Dumper(yaml.SafeDumper):
    """Dumper that repeats what appears twice, and writes long texts as blocks: the Serve part."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return that nothing is an alias."""
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the text, as a block if it has several lines."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, Dumper.represent_text)


def _server(store: str) -> str:
    """Return a store's server as Ray takes it: with its port, and the scheme for TLS."""
    parts = urlsplit(store)
    address = f"{parts.hostname}:{parts.port or 6379}"
    return f"rediss://{address}" if parts.scheme == "rediss" else address


def _refuse_secrets(where: str, store: str) -> None:
    if "@" in store:
        raise TabrankError(
            f"{where}.store: has a user or a password, which a rendered file must not contain; remove them, and "
            "put the password into the Secret that --redis-secret names"
        )


def _refuse_without_keys(where: str, application: Mapping[str, Any]) -> None:
    ingress = [one for one in application.get("deployments") or () if one["name"] == OUR_INGRESS]
    if not any((one.get("user_config") or {}).get("api_keys") for one in ingress):
        raise TabrankError(
            f"{where}.deployments[{OUR_INGRESS}].user_config.api_keys is missing: a pod listens on all addresses "
            "and needs keys; `python -m serve key` mints one"
        )


def _refuse_unmounted_paths(where: str, args: AppArgs, options: Kubernetes) -> None:
    folders = [PurePosixPath(folder) for _, folder in options.volume or ()]
    paths = {"models": args.models, "log": args.log}
    if args.surface.endswith(".toml"):
        paths["surface"] = args.surface
    if args.store.startswith("lmdb:"):
        paths["store"] = args.store.removeprefix("lmdb:")
    for key, path in paths.items():
        full = PurePosixPath(HOME) / path
        if not any(full.is_relative_to(folder) for folder in folders):
            raise TabrankError(
                f"{where}.{key}: {full} would be lost with its pod; name its claim with "
                f"--volume CLAIM={full if key == 'store' else full.parent}"
            )


def _refuse_excess_replicas(config: Config, workers: Mapping[str, NodePool]) -> None:
    for unit in ("num_cpus", "num_gpus"):
        room = sum(getattr(pool, unit) * pool.max_nodes for pool in workers.values())
        needed = sum(getattr(size, unit) * size.max_replicas for size in config.sizes)
        if needed > room:
            raise TabrankError(
                f"{config.path}: nodes: all replicas need {needed:g} {unit}, and the worker pools have {room:g}: on "
                f"Kubernetes the head runs no replica; raise max_nodes, or lower max_replicas"
            )
