"""Pools of machines that the block `nodes` declares, and their validation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from serve.config.node import Node
from serve.contract.errors import TabrankError
from serve.contract.typed_reader import STRICT, Between, checked_by

# The pool with the one machine on which Ray's controller runs.
HEAD = "head"
Count = Annotated[int, Between(0, 100_000)]
# Name of a pool or cluster, valid in Kubernetes.
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
TAINT = re.compile(
    r"(?P<key>[-./\w]+)(=(?P<value>[-.\w]*))?:(?P<effect>NoSchedule|PreferNoSchedule|NoExecute)"
)


def taint(text: object, place: str) -> object:
    """Return the text of a taint; raise TabrankError if it is not one."""
    if isinstance(text, str) and not TAINT.fullmatch(text):
        raise TabrankError(
            f"{place}: {text!r} must be KEY:EFFECT or KEY=VALUE:EFFECT, as `kubectl taint` writes it, with the "
            "effect NoSchedule, PreferNoSchedule or NoExecute"
        )
    return text


@dataclass(frozen=True)
class NodePool:
    """Machines of one kind: the resources of each, and the range of their number.

    Attributes:
        num_cpus: CPUs of each machine.
        min_nodes: Machines that always run.
        max_nodes: Largest number of machines.
        num_gpus: GPUs of each machine.
        labels: Kubernetes labels that the machines of this pool have and other machines lack.
        taints: Taints of these machines, such as "dedicated=ranking:NoSchedule".
    """

    __pydantic_config__ = STRICT
    num_cpus: Count
    min_nodes: Count
    max_nodes: Count
    num_gpus: Count = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Annotated[str, checked_by(taint)]] = field(default_factory=list)


def read_pools(root: Node) -> dict[str, NodePool]:
    """Read the pools of the block `nodes`; report invalid pools and leave them out."""
    pools: dict[str, NodePool] = {}
    block, given = root["nodes"], root.value.get("nodes", {})
    if not isinstance(given, dict):
        block.refuse(f"expected pools of machines, by name (got {given!r})")
        return pools
    for name, values in given.items():
        at = block[name]
        pool = at.read(NodePool, values, "give a number")
        if pool is not None:
            pools[str(name)] = pool
            if pool.min_nodes > pool.max_nodes:
                at["min_nodes"].refuse(f"min_nodes ({pool.min_nodes}) is above max_nodes ({pool.max_nodes})")
        if not NAME.fullmatch(str(name)):
            at.refuse(
                f"a pool's name has up to 40 lower-case letters, digits and dashes, first a letter (got {name!r})",
                key=True,
            )
    if given and HEAD not in given:
        block.refuse(f"the pool {HEAD!r} is missing; add it for Ray's controller")
    head = pools.get(HEAD)
    if head and block[HEAD].is_sound and (head.min_nodes, head.max_nodes) != (1, 1):
        block[HEAD].refuse("a cluster has one head; set min_nodes and max_nodes to 1")
    return pools
