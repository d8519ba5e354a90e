"""The pools of `nodes:` as a cluster has them: one head, and the pools of workers beside it."""

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
    """The head and the workers; `max_workers` is how many there may be of all pools."""

    head: NodePool
    workers: Mapping[str, NodePool]

    @property
    def max_workers(self) -> int:
        """Machines that may be added to the head."""
        return sum(pool.max_nodes for pool in self.workers.values())

    @property
    def all(self) -> dict[str, NodePool]:
        """Every pool, the head first."""
        return {HEAD: self.head, **self.workers}


def pools_of(config: Config) -> Pools:
    """The pools of a file; raises TabrankError where it has none, or what one machine alone could use."""
    workers = dict(config.nodes)
    head = workers.pop(HEAD, None)
    if head is None:
        raise TabrankError(f"{config.path}: nodes: no pool {HEAD!r}; name the machine of Ray's controller so")
    pools = Pools(head, workers)
    if pools.max_workers:
        _refuse_what_one_machine_holds(config)
    return pools


def our_arguments(config: Config) -> list[tuple[str, AppArgs]]:
    """The path in the file, and the value, of `args` of each application that is tabrank's own."""
    found = []
    for i, application in enumerate(config.serve.get("applications", [])):
        if application["import_path"] == OUR_APPLICATION:
            where = f"{config.path}: applications[{i}].args"
            found.append((where, AppArgs.from_mapping(application.get("args", {}), where)))
    return found


def refuse_without_keys(config: Config) -> None:
    """Where every address is listened on, whatever the file says; TabrankError for an application without keys."""
    for i, application in enumerate(config.serve.get("applications", [])):
        if application["import_path"] != OUR_APPLICATION:
            continue
        ingress = [one for one in application.get("deployments") or () if one["name"] == OUR_INGRESS]
        if not any((one.get("user_config") or {}).get("api_keys") for one in ingress):
            raise TabrankError(
                f"{config.path}: applications[{i}].deployments[{OUR_INGRESS}].user_config.api_keys is missing: a pod "
                "listens beyond itself, and answers nobody without a key; `python -m serve key` mints one"
            )


def paths_of(args: AppArgs) -> dict[str, str]:
    """The arguments that are paths of files."""
    paths = {"models": args.models, "log": args.log}
    return {**paths, "surface": args.surface} if args.surface.endswith(".toml") else paths


def _refuse_what_one_machine_holds(config: Config) -> None:
    for where, args in our_arguments(config):
        if not args.store.startswith(("redis:", "rediss:")):
            kind = args.store.partition(":")[0]
            raise TabrankError(
                f"{where}.store: {kind}: lies on one machine and `nodes` has more; use redis://HOST:PORT/DB"
            )
        for key, path in paths_of(args).items():
            if not path.startswith("/") and "://" not in path:
                raise TabrankError(
                    f"{where}.{key}: {path!r} is relative to this file, which each of several machines would "
                    "look for on its own disk; give an absolute path of a folder that all of them mount"
                )


def backends_of(config: Config) -> set[str]:
    """The scoring backends that the file asks for."""
    return {args.backend for _, args in our_arguments(config)}
