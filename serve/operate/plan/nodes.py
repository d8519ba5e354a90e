"""Simulate the machines of `nodes`: place replicas, and scale nodes with Ray's autoscaler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray.autoscaler._private.constants import AUTOSCALER_UPDATE_INTERVAL_S
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from serve.config.pools import HEAD, NodePool
from serve.operate.plan.costs import NodeCosts
from serve.operate.plan.virtual_time import VirtualTimeLoop

UPDATE_S: float = AUTOSCALER_UPDATE_INTERVAL_S
EPS = 1e-9
Needs = Mapping[str, float]


@dataclass(eq=False)
class Node:
    """One machine, on which replicas can start from `joins_s` on."""

    name: str
    pool: str
    free: Counter[str]
    joins_s: float
    idle_since_s: float
    num_replicas: int = 0

    @property
    def is_head(self) -> bool:
        """Return whether this is the machine of Ray's controller."""
        return self.pool == HEAD


class Cluster:
    """Running and starting nodes; to Ray's scheduler also the interface of a cloud."""

    def __init__(self, pools: Mapping[str, NodePool], costs: NodeCosts, loop: VirtualTimeLoop) -> None:
        self._pools = pools
        self._costs = costs
        self._loop = loop
        self.nodes: list[Node] = []
        self._num_launched = 0
        # Ray counts the head in addition to the workers of its type.
        types = {
            name: {
                "resources": _resources(pool),
                "min_workers": max(pool.min_nodes - (name == HEAD), 0),
                "max_workers": max(pool.max_nodes - (name == HEAD), 0),
            }
            for name, pool in pools.items()
        }
        max_workers = sum(pool.max_nodes for name, pool in pools.items() if name != HEAD)
        self._scheduler = ResourceDemandScheduler(self, types, max_workers, HEAD, 1.0)
        for name, pool in pools.items():
            for _ in range(max(pool.min_nodes, int(name == HEAD))):
                self._launch(name, 0.0)

    @property
    def joined(self) -> list[Node]:
        """Return the nodes on which replicas can start."""
        return [node for node in self.nodes if node.joins_s <= self._loop.time()]

    def place(self, needs: Needs) -> Node | None:
        """Place a replica on the node with the fewest, as Serve does; return None without room."""
        fitting = [
            node for node in self.joined if all(node.free[name] + EPS >= needs[name] for name in needs)
        ]
        node = min(fitting, key=lambda each: each.num_replicas, default=None)
        if node is not None:
            node.free.subtract(needs)
            node.num_replicas += 1
        return node

    def release(self, node: Node, needs: Needs) -> None:
        """Free the room of a replica that has stopped."""
        node.free.update(needs)
        node.num_replicas -= 1
        node.idle_since_s = self._loop.time()

    def update(self, unplaced: Sequence[Needs], at_once: bool = False) -> None:
        """Run one autoscaler iteration: add nodes for unplaced replicas, remove idle ones."""
        self._remove_idle()
        wanted, _ = self._scheduler.get_nodes_to_launch(
            nodes=[node.name for node in self.nodes],
            launching_nodes={},
            resource_demands=[dict(needs) for needs in unplaced if needs],
            unused_resources_by_ip={node.name: dict(node.free) for node in self.joined},
            pending_placement_groups=[],
            max_resources_by_ip={},
            ensure_min_cluster_size=[],
            node_availability_summary=NodeAvailabilitySummary(node_availabilities={}),
        )
        for pool, count in wanted.items():
            for _ in range(count):
                self._launch(pool, 0.0 if at_once else self._costs.start_s)

    def node_tags(self, name: str) -> dict[str, str]:
        """Return the kind of a node, for Ray's scheduler."""
        node = next(node for node in self.nodes if node.name == name)
        kind = NODE_KIND_HEAD if node.is_head else NODE_KIND_WORKER
        return {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: node.pool}

    def internal_ip(self, name: str) -> str:
        """Return the address of a node, for Ray's scheduler: its name."""
        return name

    def _remove_idle(self) -> None:
        num_of_pool = Counter(node.pool for node in self.nodes)
        oldest_s = self._loop.time() - self._costs.idle_timeout_s
        for node in reversed(self.joined):
            may_go = not node.is_head and num_of_pool[node.pool] > self._pools[node.pool].min_nodes
            if may_go and not node.num_replicas and node.idle_since_s <= oldest_s:
                self.nodes.remove(node)
                num_of_pool[node.pool] -= 1

    def _launch(self, pool: str, start_s: float) -> None:
        self._num_launched += 1
        joins_s = self._loop.time() + start_s
        free = Counter(_resources(self._pools[pool]))
        self.nodes.append(Node(f"{pool}-{self._num_launched}", pool, free, joins_s, joins_s))


def _resources(pool: NodePool) -> dict[str, float]:
    return {"CPU": pool.num_cpus, **({"GPU": pool.num_gpus} if pool.num_gpus else {})}
