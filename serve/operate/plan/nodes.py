"""Machines of the block `nodes`: place replicas, add nodes that they need, and remove idle ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from serve.config.pools import HEAD, NodePool
from serve.config.sizes import EPSILON

# A node without replicas is removed after this time, which is the default of Ray and of `render
# kubernetes`.
IDLE_TIMEOUT_S = 300.0
Needs = Mapping[str, float]
"""Ray's resources of a replica, such as {"CPU": 0.5}."""


@dataclass(eq=False)
class Node:
    """One machine, on which replicas can start from `joins_s` on."""

    pool: str
    free: Counter[str]
    joins_s: float
    idle_since_s: float
    num_replicas: int = 0

    def has_room(self, needs: Needs) -> bool:
        """Return whether one more replica fits."""
        return all(self.free[name] + EPSILON >= amount for name, amount in needs.items())


class Cluster:
    """Running and starting nodes, within the bounds of their pools."""

    def __init__(self, pools: Mapping[str, NodePool], start_s: float) -> None:
        self.nodes: list[Node] = []
        self._pools = pools
        self._start_s = start_s
        for name, pool in pools.items():
            for _ in range(max(pool.min_nodes, int(name == HEAD))):
                self._launch(name, 0.0)

    def num_joined(self, now_s: float) -> int:
        """Return the number of nodes on which replicas can start."""
        return sum(node.joins_s <= now_s for node in self.nodes)

    def place(self, needs: Needs, now_s: float, at_once: bool = False) -> Node | None:
        """Place a replica on a node that runs, on one that starts, or on a new one.

        Among running nodes, the one with the fewest replicas is taken, as in Serve. A new node
        comes from the pool with the smallest machines, and without GPUs if the replica needs none,
        as Ray's autoscaler prefers. Return None if there is no room.
        """
        if fitting := [node for node in self.nodes if node.has_room(needs)]:
            node = min(fitting, key=lambda each: (max(each.joins_s, now_s), each.num_replicas))
        else:
            pools = [name for name in self._pools if self._may_add(name, needs)]
            if not pools:
                return None
            smallest = min(pools, key=lambda name: (self._pools[name].num_gpus, self._pools[name].num_cpus))
            node = self._launch(smallest, now_s if at_once else now_s + self._start_s)
        node.free.subtract(needs)
        node.num_replicas += 1
        return node

    def release(self, node: Node, needs: Needs, now_s: float) -> None:
        """Free the room of a replica that has stopped."""
        node.free.update(needs)
        node.num_replicas -= 1
        node.idle_since_s = now_s

    def remove_idle(self, now_s: float) -> None:
        """Remove nodes that have been idle for long, except the head and each pool's minimum."""
        num_of_pool = Counter(node.pool for node in self.nodes)
        for node in reversed(self.nodes):
            is_idle = not node.num_replicas and now_s - node.idle_since_s >= IDLE_TIMEOUT_S
            if is_idle and node.pool != HEAD and num_of_pool[node.pool] > self._pools[node.pool].min_nodes:
                self.nodes.remove(node)
                num_of_pool[node.pool] -= 1

    def _may_add(self, name: str, needs: Needs) -> bool:
        has = sum(node.pool == name for node in self.nodes)
        return has < self._pools[name].max_nodes and self._new(name, 0.0).has_room(needs)

    def _launch(self, name: str, joins_s: float) -> Node:
        node = self._new(name, joins_s)
        self.nodes.append(node)
        return node

    def _new(self, name: str, joins_s: float) -> Node:
        pool = self._pools[name]
        return Node(name, Counter({"CPU": pool.num_cpus, "GPU": pool.num_gpus}), joins_s, joins_s)
