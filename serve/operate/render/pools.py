"""Pools of `nodes` for a cluster of several machines, and the arguments of our applications."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serve.config.application import OUR_APPLICATION
from serve.config.pools import HEAD, NodePool
from serve.config.reader import Config
from serve.config.settings import AppArgs
from serve.contract.errors import TabrankError


@dataclass(frozen=True)
class Pools:
    """Head and workers."""

    head: NodePool
    workers: Mapping[str, NodePool]

    @property
    def max_workers(self) -> int:
        """Return the number of machines that may be added to the head."""
        return sum(pool.max_nodes for pool in self.workers.values())


def pools_of(config: Config) -> Pools:
    """Return a file's pools; raise TabrankError without a head, or for settings of one machine."""
    workers = dict(config.nodes)
    head = workers.pop(HEAD, None)
    if head is None:
        raise TabrankError(f"{config.path}: nodes: no pool {HEAD!r}; name the pool of Ray's controller so")
    pools = Pools(head, workers)
    for where, args in our_arguments(config):
        # The reader has checked the other paths.
        if pools.max_workers and args.surface.endswith(".toml") and not args.surface.startswith("/"):
            raise TabrankError(
                f"{where}.surface: {args.surface!r} is relative to this file, so each machine would look for it on its "
                "own disk; give an absolute path of a folder that all machines mount"
            )
    return pools


def our_arguments(config: Config) -> list[tuple[str, AppArgs]]:
    """Return the path in the file and the value of `args`, for each of our applications."""
    found = []
    for i, application in enumerate(config.serve["applications"]):
        if application["import_path"] == OUR_APPLICATION:
            where = f"{config.path}: applications[{i}].args"
            found.append((where, AppArgs.from_mapping(application["args"], where)))
    return found
