"""Render the RayService for KubeRay, with its NetworkPolicy, from `cluster.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.config.pools import HEAD, NodePool
from serve.config.reader import Config
from serve.config.settings import AppArgs
from serve.contract.errors import TabrankError
from serve.operate.host.environment import rendered_environment
from serve.operate.render.options import Kubernetes
from serve.operate.render.templates import dump, fill, load

# The image's folder, from which relative paths start.
HOME = "/home/tabrank/app"


def kubernetes(config: Config, options: Kubernetes) -> str:
    """Return the text of both objects; raise TabrankError where pods cannot serve the file."""
    workers = dict(config.nodes)
    head = workers.pop(HEAD, None)
    if head is None:
        raise TabrankError(f"{config.path}: nodes: the pool {HEAD!r} is missing; add it for Ray's controller")
    arguments = _our_arguments(config)
    _refuse_unmounted_paths(arguments, options)
    _refuse_secrets(arguments)
    _refuse_without_keys(config)
    several = any(pool.max_nodes for pool in workers.values())
    if several:
        _refuse_excess_replicas(config, workers)
    stores = [args.store for _, args in arguments if "://" in args.store]
    redis = options.redis or next(map(_server, stores), None)
    if several and not redis:
        raise TabrankError(
            "--redis is missing: name HOST:PORT of the server that keeps Ray's state when the head is lost"
        )
    environment = rendered_environment(HOME)
    # KubeRay sets the mode and the token by authOptions.
    del environment["RAY_AUTH_MODE"]
    # A pod listens on all addresses, behind the NetworkPolicy.
    serve = {**config.serve, "http_options": {**config.serve.get("http_options", {}), "host": "0.0.0.0"}}
    if several:
        # Each serving pod runs an HAProxy, and Kubernetes balances over them.
        serve["proxy_location"] = "EveryNode"
    values = {
        **vars(options),
        "file": config.path.name,
        "port": config.port,
        "several": several,
        "upgrade": "NewCluster" if several else "None",
        "serve_config": yaml.safe_dump(serve, sort_keys=False, allow_unicode=True),
        "ray_version": version("ray"),
        "idle_s": round(60 * options.idle_minutes),
        "token_secret": options.token_secret or f"{options.name}-ray-token",
        "redis_secret": options.redis_secret or f"{options.name}-redis",
        "redis": redis,
        "store_password": bool(stores),
        "claims": [{"claim": claim, "folder": folder} for claim, folder in options.volume or ()],
        "access": "ReadWriteMany" if several else "ReadWriteOnce",
        "callers": [{"caller": namespace} for namespace in options.allow or [options.namespace]],
        "environment": [{"variable": name, "value": value} for name, value in environment.items()],
        "head_cpus": "0" if several else str(head.num_cpus),
    }
    settings, *objects = load("rayservice.yaml")
    settings = fill(settings, values)
    values |= {
        "head": settings["head"] | _pod_values(HEAD, head, options),
        "workers": [settings["worker"] | _pod_values(name, pool, options) for name, pool in workers.items()],
    }
    return dump(settings["notes"], *(fill(one, values) for one in objects))


def _our_arguments(config: Config) -> list[tuple[str, AppArgs]]:
    """Return the path in the file and the value of `args`, for each of our applications."""
    found = []
    for i, application in enumerate(config.serve["applications"]):
        if application["import_path"] == OUR_APPLICATION:
            where = f"{config.path}: applications[{i}].args"
            found.append((where, AppArgs.from_mapping(application["args"], where)))
    return found


def _pod_values(name: str, pool: NodePool, options: Kubernetes) -> dict[str, Any]:
    return {
        "pool": name,
        "min_nodes": pool.min_nodes,
        "max_nodes": pool.max_nodes,
        "cpu": str(pool.num_cpus),
        "memory": f"{options.memory_gib_per_cpu * max(pool.num_cpus, 1)}Gi",
        "gpu": str(pool.num_gpus) if pool.num_gpus else None,
    }


def _server(store: str) -> str:
    """Return a store's server as Ray takes it: with its port, and the scheme for TLS."""
    parts = urlsplit(store)
    address = f"{parts.hostname}:{parts.port or 6379}"
    return f"rediss://{address}" if parts.scheme == "rediss" else address


def _refuse_secrets(arguments: list[tuple[str, AppArgs]]) -> None:
    for where, args in arguments:
        if "@" in args.store and "://" in args.store:
            raise TabrankError(
                f"{where}.store: has a user or a password, which a rendered file must not contain; remove them, and "
                "put the password into the Secret that --redis-secret names"
            )


def _refuse_without_keys(config: Config) -> None:
    for i, application in enumerate(config.serve["applications"]):
        if application["import_path"] != OUR_APPLICATION:
            continue
        ingress = [one for one in application.get("deployments") or () if one["name"] == OUR_INGRESS]
        if not any((one.get("user_config") or {}).get("api_keys") for one in ingress):
            raise TabrankError(
                f"{config.path}: applications[{i}].deployments[{OUR_INGRESS}].user_config.api_keys is missing: a pod "
                "listens on all addresses and needs keys; `python -m serve key` mints one"
            )


def _refuse_unmounted_paths(arguments: list[tuple[str, AppArgs]], options: Kubernetes) -> None:
    folders = [PurePosixPath(folder) for _, folder in options.volume or ()]
    for where, args in arguments:
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
