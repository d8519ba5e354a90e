"""Pools of `nodes` for a cluster of several machines: one head and pools of workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serve.config.application import OUR_APPLICATION, OUR_INGRESS
from serve.config.pools import HEAD, NodePool
from serve.config.reader import Config
from serve.config.settings import AppArgs
from serve.contract.errors import TabrankError


@dataclass(frozen=True)
class Pools:
    """Head and workers; `max_workers` is the maximum number of workers of all pools."""

    head: NodePool
    workers: Mapping[str, NodePool]

    @property
    def max_workers(self) -> int:
        """Return the number of machines that may be added to the head."""
        return sum(pool.max_nodes for pool in self.workers.values())

    @property
    def all(self) -> dict[str, NodePool]:
        """Return all pools, the head first."""
        return {HEAD: self.head, **self.workers}


def pools_of(config: Config) -> Pools:
    """Return a file's pools; raise TabrankError without a head, or for settings of one machine."""
    workers = dict(config.nodes)
    head = workers.pop(HEAD, None)
    if head is None:
        raise TabrankError(f"{config.path}: nodes: no pool {HEAD!r}; name the pool of Ray's controller so")
    pools = Pools(head, workers)
    if pools.max_workers:
        _refuse_single_machine_settings(config)
    return pools


def our_arguments(config: Config) -> list[tuple[str, AppArgs]]:
    """Return the path in the file and the value of `args`, for each of our applications."""
    found = []
    for i, application in enumerate(config.serve.get("applications", [])):
        if application["import_path"] == OUR_APPLICATION:
            where = f"{config.path}: applications[{i}].args"
            found.append((where, AppArgs.from_mapping(application.get("args", {}), where)))
    return found


def refuse_without_keys(config: Config) -> None:
    """Raise TabrankError for an application without keys, for pods that listen on all addresses."""
    for i, application in enumerate(config.serve.get("applications", [])):
        if application["import_path"] != OUR_APPLICATION:
            continue
        ingress = [one for one in application.get("deployments") or () if one["name"] == OUR_INGRESS]
        if not any((one.get("user_config") or {}).get("api_keys") for one in ingress):
            raise TabrankError(
                f"{config.path}: applications[{i}].deployments[{OUR_INGRESS}].user_config.api_keys is missing: a pod "
                "listens on all addresses and needs keys; `python -m serve key` mints one"
            )


def paths_of(args: AppArgs) -> dict[str, str]:
    """Return the arguments that are file paths."""
    paths = {"models": args.models, "log": args.log}
    return {**paths, "surface": args.surface} if args.surface.endswith(".toml") else paths


def _refuse_single_machine_settings(config: Config) -> None:
    for where, args in our_arguments(config):
        if not args.store.startswith(("redis:", "rediss:")):
            kind = args.store.partition(":")[0]
            raise TabrankError(
                f"{where}.store: {kind}: is on one machine and `nodes` has several; use redis://HOST:PORT/DB"
            )
        for key, path in paths_of(args).items():
            if not path.startswith("/") and "://" not in path:
                raise TabrankError(
                    f"{where}.{key}: {path!r} is relative to this file, so each machine would look for it on its own "
                    "disk; give an absolute path of a folder that all machines mount"
                )


def backends_of(config: Config) -> set[str]:
    """Return the scoring backends that the file uses."""
    return {args.backend for _, args in our_arguments(config)}
