"""Sizes of deployments: check their values, and whether the pools of nodes have room for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import InstanceOf

from serve.config.node import Node
from serve.config.pools import NodePool

UNITS = {"num_cpus": "CPUs", "num_gpus": "GPUs"}
# Rounding tolerance: three times 0.1 CPU is not more than 0.3 CPU.
EPSILON = 1e-6


@dataclass(frozen=True)
class Size:
    """Values of a deployment that other parts of the file depend on, with Ray's defaults."""

    # The deployment in the file.
    at: InstanceOf[Node]
    name: str
    min_replicas: int
    max_replicas: int
    # None without autoscaling.
    target_ongoing_requests: float | None
    max_ongoing_requests: int
    # CPUs of one replica. GPUs and bundles are those of one replica too.
    num_cpus: float
    num_gpus: float
    num_bundles: int
    graceful_shutdown_timeout_s: float
    # None without autoscaling.
    metrics_interval_s: float | None = None
    look_back_period_s: float | None = None


def check_size(size: Size) -> None:
    """Check the rules within one deployment."""
    at, scaling = size.at, size.at["autoscaling_config"]
    target, most = size.target_ongoing_requests, size.max_ongoing_requests
    if target is not None and target >= most:
        scaling["target_ongoing_requests"].refuse(
            f"target_ongoing_requests ({target:g}) must be below max_ongoing_requests ({most}), "
            "or the deployment never scales up: only running requests count"
        )
    if size.num_gpus > 1 and size.num_bundles == 1 and not size.num_gpus.is_integer():
        at["ray_actor_options"]["num_gpus"].refuse(
            f"Ray assigns a share of one GPU, or whole GPUs (got {size.num_gpus:g}); round it"
        )
    interval_s, look_back_s = size.metrics_interval_s, size.look_back_period_s
    if interval_s is not None and look_back_s is not None and look_back_s <= interval_s:
        scaling["look_back_period_s"].refuse(
            f"look_back_period_s ({look_back_s:g}) must be above metrics_interval_s ({interval_s:g}), "
            "or the period holds no report to average over; raise it"
        )


def check_room(nodes: Node, sizes: Sequence[Size], pools: Mapping[str, NodePool]) -> None:
    """Check that the pools have room for each replica, for all minima and for all maxima."""
    reachable = [pool for pool in pools.values() if pool.max_nodes]
    for size in sizes:
        _check_one(size, reachable)
    if nodes.document.refused:
        return
    for unit in UNITS:
        total = sum(getattr(pool, unit) * pool.max_nodes for pool in reachable)
        least = sum(getattr(size, unit) * size.min_replicas for size in sizes)
        most = sum(getattr(size, unit) * size.max_replicas for size in sizes)
        if least > total + EPSILON:
            nodes.refuse(
                f"the minimum replicas of all deployments together need {least:g} {UNITS[unit]}, and all nodes offer "
                f"{total:g}; raise max_nodes, or lower min_replicas or {unit}"
            )
        elif most > total + EPSILON:
            nodes.warn(
                f"the maximum replicas of all deployments together need {most:g} {UNITS[unit]}, and all nodes offer "
                f"{total:g}: not all can be at their maximum at once"
            )


def _fits(size: Size, pools: Sequence[NodePool]) -> bool:
    """Return True if a replica, or each bundle of one, fits on a node of one of the pools."""
    cpus, gpus = size.num_cpus / size.num_bundles, size.num_gpus / size.num_bundles
    return any(pool.num_cpus + EPSILON >= cpus and pool.num_gpus + EPSILON >= gpus for pool in pools)


def _check_one(size: Size, pools: Sequence[NodePool]) -> None:
    if _fits(size, pools):
        return
    cpus, gpus = size.num_cpus / size.num_bundles, size.num_gpus / size.num_bundles
    options = size.at["ray_actor_options"]
    if gpus and not any(pool.num_gpus for pool in pools):
        options["num_gpus"].refuse(
            f"{size.name} requests a GPU (got {gpus:g}), and no pool of `nodes` has one; add num_gpus to a pool"
        )
        return
    largest = max((pool.num_cpus for pool in pools), default=0)
    options["num_cpus" if cpus > largest else "num_gpus"].refuse(
        f"a replica of {size.name} ({cpus:g} CPU, {gpus:g} GPU) fits on no node of `nodes`; "
        "request less, or give a pool larger nodes"
    )
