"""Simulate the replicas of a service, second by second, under a load trace.

Requests are not simulated. The number of ongoing requests is their rate times the time for which
one is ongoing (Little's law). From this number, Ray's own code decides on replicas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from serve.config.pools import HEAD, NodePool
from serve.config.reader import Config
from serve.config.sizes import Size
from serve.contract.errors import TabrankError, unknown
from serve.operate.plan.nodes import Cluster, Node
from serve.operate.plan.policy import Autoscaler
from serve.operate.plan.trace import Trace

FETCH, SCORER = "FeatureFetch", "Scorer"
# For how long Ray counts a request as ongoing, measured at the targets of the shipped cluster.yaml:
# 32 requests at 1,600/s in FeatureFetch, and 1.3 batches at 2,600 rankings/s in Scorer, because
# three Scorers serve five FeatureFetch.
ONGOING_MS = {FETCH: 20.0, SCORER: 0.5}
# From Ray's decision until the replica takes requests.
REPLICA_START_S = 4.0
# The pool that stands in if the file has no `nodes`; it has room for everything.
UNLIMITED = {HEAD: NodePool(1_000_000, 1, 1, 1_000)}


@dataclass(eq=False)
class Replica:
    """One replica; its node is None while no node has room for it."""

    node: Node | None = None
    ready_s: float = math.inf


class Deployment:
    """Replicas of one deployment; without an autoscaler their number does not change."""

    def __init__(
        self, name: str, size: Size, autoscaler: Autoscaler | None = None, ongoing_ms: float = 0.0
    ) -> None:
        self.name = name
        self.ongoing_ms = ongoing_ms
        self.max_replicas = size.max_replicas
        self.autoscaler = autoscaler
        self.wanted = size.min_replicas
        self.replicas: list[Replica] = []
        self._needs = {"CPU": size.num_cpus, "GPU": size.num_gpus}

    @property
    def num_needed(self) -> int:
        """Return the number of replicas that have at most their target of ongoing requests."""
        return self.autoscaler.num_needed if self.autoscaler else self.wanted

    def num_running(self, now_s: float) -> int:
        """Return the number of replicas that take requests."""
        return sum(replica.ready_s <= now_s for replica in self.replicas)

    def begin(self, rate_rps: float, cluster: Cluster) -> None:
        """Run the replicas that a rate needs that has lasted for long."""
        if self.autoscaler:
            self.wanted = self.autoscaler.begin(self._ongoing(rate_rps))
        self.place(0.0, cluster, at_once=True)

    def update(self, now_s: float, rate_rps: float, cluster: Cluster) -> None:
        """Let Ray decide, and start and stop replicas."""
        if self.autoscaler:
            ongoing, num_running = self._ongoing(rate_rps), self.num_running(now_s)
            self.wanted = self.autoscaler.decide(now_s, ongoing, num_running, self.wanted)
        excess = max(len(self.replicas) - self.wanted, 0)
        newest_first = self.replicas[::-1]
        for replica in sorted(newest_first, key=lambda each: _stop_order(each, now_s))[:excess]:
            self.replicas.remove(replica)
            if replica.node:
                cluster.release(replica.node, self._needs, now_s)
        self.place(now_s, cluster)

    def place(self, now_s: float, cluster: Cluster, at_once: bool = False) -> None:
        """Place new and waiting replicas on nodes; with `at_once` nothing takes time to start."""
        self.replicas += [Replica() for _ in range(self.wanted - len(self.replicas))]
        for replica in self.replicas:
            if replica.node is None and (node := cluster.place(self._needs, now_s, at_once)):
                replica.node = node
                start_s = 0.0 if at_once else REPLICA_START_S
                replica.ready_s = max(node.joins_s, now_s) + start_s

    def _ongoing(self, rate_rps: float) -> float:
        return rate_rps * self.ongoing_ms / 1e3


def _stop_order(replica: Replica, now_s: float) -> tuple[bool, bool, int]:
    """Return the sort key of Ray's stop order: not running, off the head, few neighbours."""
    if replica.node is None:
        return False, False, 0
    return replica.ready_s <= now_s, replica.node.pool == HEAD, replica.node.num_replicas


@dataclass(frozen=True)
class Second:
    """Counts of one second, by deployment; no node has room for `num_unplaced` replicas."""

    rate_rps: float
    running: Mapping[str, int]
    needed: Mapping[str, int]
    num_nodes: int
    num_unplaced: int


def read_deployments(config: Config, ongoing_ms: Mapping[str, float]) -> list[Deployment]:
    """Return all deployments of a `cluster.yaml`. Those that scale and have a time follow the load.

    `ongoing_ms` has, by deployment, the time for which a request is ongoing; other deployments have
    our measured times. If there are several surfaces, the load is that of the first. Other
    applications only take room on nodes.

    Raise TabrankError if no deployment can be planned.
    """
    applications = config.serve["applications"]
    sizes = [(size.at.steps[1], size) for size in config.sizes]
    planned = next((i for i, size in sizes if size.name == FETCH), None)
    if planned is None:
        raise TabrankError(f"{config.path}: no application has the deployment {FETCH}; nothing to plan")
    if applications[planned].get("autoscaling_policy"):
        raise TabrankError(
            f"{config.path}: applications[{planned}].autoscaling_policy: a policy for several deployments at once "
            "cannot be planned; give each deployment one in its autoscaling_config"
        )
    targets = [size.name for i, size in sizes if i == planned and size.target_ongoing_requests]
    for name in ongoing_ms:
        if name not in targets:
            raise TabrankError(f"--ongoing-ms: {unknown('deployment', name, targets)}")
    times_ms = {**ONGOING_MS, **ongoing_ms}
    deployments = []
    for i, size in sizes:
        name = size.name if i == planned else f"applications[{i}].{size.name}"
        follows = name in targets and name in times_ms
        deployments.append(_scaled(size, times_ms[name]) if follows else Deployment(name, size))
    if not any(each.autoscaler for each in deployments):
        raise TabrankError(
            f"{config.path}: applications[{planned}]: no deployment scales, so there is nothing to plan; give {FETCH} "
            f"or {SCORER} an autoscaling_config"
        )
    return deployments


def _scaled(size: Size, ongoing_ms: float) -> Deployment:
    # For `num_replicas: auto`, Ray's models have other bounds than usual. The size has them.
    declared = {
        **(size.at["autoscaling_config"].value or {}),
        "min_replicas": size.min_replicas,
        "max_replicas": size.max_replicas,
        "target_ongoing_requests": size.target_ongoing_requests,
    }
    return Deployment(size.name, size, Autoscaler(size.name, declared), ongoing_ms)


def simulate(
    config: Config, deployments: list[Deployment], trace: Trace, node_start_s: float
) -> list[Second]:
    """Return the counts of each second. At first, as many replicas run as the first rate needs."""
    cluster = Cluster(config.nodes or UNLIMITED, node_start_s)
    for deployment in deployments:
        deployment.begin(trace.rates_rps[0], cluster)
    seconds = []
    for now_s, rate_rps in enumerate(trace.rates_rps):
        for deployment in deployments:
            deployment.update(now_s, rate_rps, cluster)
        cluster.remove_idle(now_s)
        seconds.append(
            Second(
                rate_rps,
                {each.name: each.num_running(now_s) for each in deployments},
                {each.name: each.num_needed for each in deployments},
                cluster.num_joined(now_s),
                sum(replica.node is None for each in deployments for replica in each.replicas),
            )
        )
    return seconds
