"""Simulate the machines of `nodes`: place replicas, and scale nodes with Ray's autoscaler."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.autoscaler._private.constants import AUTOSCALER_UPDATE_INTERVAL_S
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    TAG_RAY_NODE_KIND,
    TAG_RAY_USER_NODE_TYPE,
)

from serve.config.pools import HEAD, NodePool
from serve.operate.plan.costs import NodeCosts

UPDATE_S: float = AUTOSCALER_UPDATE_INTERVAL_S
EPS = 1e-9
Needs = Mapping[str, float]


@dataclass(eq=False)
class Node:
    """One machine, on which replicas can start from `joins_s` on."""

    name: str
    pool: str
    free: dict[str, float]
    joins_s: float
    num_replicas: int = 0
    idle_since_s: float = 0.0

    def fits(self, needs: Needs) -> bool:
        """Return whether a replica finds room."""
        return all(self.free.get(name, 0.0) + EPS >= amount for name, amount in needs.items())


@dataclass(eq=False)
class _Provider:
    """Interface that Ray's scheduler calls on a cloud: a node's kind and its address."""

    head: str
    pools: dict[str, str] = field(default_factory=dict)

    def node_tags(self, node: str) -> dict[str, str]:
        kind = NODE_KIND_HEAD if self.pools[node] == self.head else NODE_KIND_WORKER
        return {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: self.pools[node]}

    def internal_ip(self, node: str) -> str:
        return node


class Cluster:
    """Running and starting nodes."""

    def __init__(self, pools: Mapping[str, NodePool], costs: NodeCosts, now_s: float) -> None:
        self._pools = pools
        self._costs = costs
        self._head = HEAD
        self._provider = _Provider(self._head)
        self.nodes: list[Node] = []
        self._num_launched = 0
        # Ray counts the head in addition to the workers of its type.
        types: dict[str, dict[str, Any]] = {
            name: {
                "resources": _resources(pool),
                "min_workers": max(pool.min_nodes - (name == self._head), 0),
                "max_workers": max(pool.max_nodes - (name == self._head), 0),
            }
            for name, pool in pools.items()
        }
        max_workers = sum(kind["max_workers"] for kind in types.values())
        self._scheduler = ResourceDemandScheduler(self._provider, types, max_workers, self._head, 1.0)
        for name, pool in pools.items():
            for _ in range(max(pool.min_nodes, int(name == self._head))):
                self._launch(name, now_s)

    def joined(self, now_s: float) -> list[Node]:
        """Return the nodes on which replicas can start."""
        return [node for node in self.nodes if node.joins_s <= now_s]

    def is_head(self, node: Node) -> bool:
        """Return whether a node is of the pool of the head."""
        return node.pool == self._head

    def place(self, needs: Needs, now_s: float) -> Node | None:
        """Place a replica on the node with the fewest, as Serve does; return None without room."""
        fitting = [node for node in self.joined(now_s) if node.fits(needs)]
        if not fitting:
            return None
        node = min(fitting, key=lambda each: each.num_replicas)
        for name, amount in needs.items():
            node.free[name] -= amount
        node.num_replicas += 1
        return node

    def release(self, node: Node, needs: Needs, now_s: float) -> None:
        """Free the room of a replica that has stopped."""
        for name, amount in needs.items():
            node.free[name] += amount
        node.num_replicas -= 1
        node.idle_since_s = now_s

    def update(self, now_s: float, unplaced: Sequence[Needs], at_once: bool = False) -> None:
        """Run one autoscaler iteration: add nodes for unplaced replicas, remove idle ones."""
        self._remove_idle(now_s)
        wanted = self._wanted([dict(needs) for needs in unplaced if needs], now_s)
        for pool, count in wanted.items():
            for _ in range(count):
                self._launch(pool, now_s + (0.0 if at_once else self._costs.start_s))

    def _wanted(self, demands: list[dict[str, float]], now_s: float) -> dict[str, int]:
        ready = {node.name: dict(node.free) for node in self.joined(now_s)}
        logger = logging.getLogger(ResourceDemandScheduler.__module__)
        level = logger.level
        # Ray warns on each call about a demand that no pool fits; the plan warns once.
        logger.setLevel(logging.ERROR)
        try:
            wanted, _ = self._scheduler.get_nodes_to_launch(
                [node.name for node in self.nodes],
                {},
                demands,
                ready,
                [],
                {},
                [],
                NodeAvailabilitySummary(node_availabilities={}),
            )
        finally:
            logger.setLevel(level)
        return {str(name): int(count) for name, count in wanted.items()}

    def _remove_idle(self, now_s: float) -> None:
        for node in reversed(self.joined(now_s)):
            of_pool = sum(each.pool == node.pool for each in self.nodes)
            may_go = not self.is_head(node) and of_pool > self._pools[node.pool].min_nodes
            if may_go and not node.num_replicas and now_s - node.idle_since_s >= self._costs.idle_timeout_s:
                self.nodes.remove(node)
                del self._provider.pools[node.name]

    def _launch(self, pool: str, joins_s: float) -> None:
        self._num_launched += 1
        name = f"{pool}-{self._num_launched}"
        self._provider.pools[name] = pool
        free = {key: float(amount) for key, amount in _resources(self._pools[pool]).items()}
        self.nodes.append(Node(name, pool, free, joins_s, idle_since_s=joins_s))


def _resources(pool: NodePool) -> dict[str, int]:
    return {"CPU": pool.num_cpus, **({"GPU": pool.num_gpus} if pool.num_gpus else {})}
