"""How large a deployment is, and the rules between its sizes and times, and with the pools of nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serve.config.diagnostics import Findings
from serve.config.pools import HEAD, NodePool
from serve.config.yaml_positions import Steps

UNITS = {"num_cpus": "CPUs", "num_gpus": "GPUs"}
EPSILON = 1e-6  # of a CPU: a tenth three times is no more than three tenths


@dataclass(frozen=True)
class Size:
    """What of a deployment other parts of the file depend on, Ray's defaults filled in."""

    steps: Steps  # where it stands in the file
    name: str
    min_replicas: int
    max_replicas: int
    target_ongoing_requests: float | None  # None: it does not scale
    metrics_interval_s: float | None
    look_back_period_s: float | None
    max_ongoing_requests: int
    num_cpus: float  # of one replica
    num_gpus: float
    num_bundles: int
    shutdown_timeout_s: float
    shutdown_wait_loop_s: float
    health_check_timeout_s: float


def check_size(findings: Findings, size: Size) -> None:
    """The rules within one deployment."""
    scaling = (*size.steps, "autoscaling_config")
    target, most = size.target_ongoing_requests, size.max_ongoing_requests
    if target is not None and target >= most:
        findings.refuse(
            (*scaling, "target_ongoing_requests"),
            f"target_ongoing_requests ({target:g}) must be below max_ongoing_requests ({most}), "
            "or the deployment never scales up: only running requests count",
        )
    if size.num_gpus > 1 and size.num_bundles == 1 and not size.num_gpus.is_integer():
        findings.refuse(
            (*size.steps, "ray_actor_options", "num_gpus"),
            f"Ray places a share of one GPU, or whole ones (got {size.num_gpus:g})",
        )
    interval_s, look_back_s = size.metrics_interval_s, size.look_back_period_s
    if interval_s is not None and look_back_s is not None and look_back_s <= interval_s:
        findings.refuse(
            (*scaling, "look_back_period_s"),
            f"look_back_period_s ({look_back_s:g}) must be above metrics_interval_s ({interval_s:g}), "
            "or there is no report in it to average over",
        )
    if size.shutdown_wait_loop_s > size.shutdown_timeout_s:
        findings.refuse(
            (*size.steps, "graceful_shutdown_wait_loop_s"),
            f"graceful_shutdown_wait_loop_s ({size.shutdown_wait_loop_s:g}) is above graceful_shutdown_timeout_s "
            f"({size.shutdown_timeout_s:g}): a replica would be killed before it first looks; lower it",
        )
    if size.health_check_timeout_s < 1:
        findings.warn(
            (*size.steps, "health_check_timeout_s"),
            f"a healthy replica of a full machine may take seconds to answer (got {size.health_check_timeout_s:g}); "
            "give it 5",
        )


def check_room(findings: Findings, sizes: Sequence[Size], pools: Mapping[str, NodePool]) -> None:
    """Whether the pools hold a replica of each, all minima and all maxima together."""
    reachable = [pool for pool in pools.values() if pool.max_nodes]
    for size in sizes:
        _check_one(findings, size, reachable)
    if not findings.are_none():
        return
    for unit in UNITS:
        total = sum(getattr(pool, unit) * pool.max_nodes for pool in reachable)
        least = sum(getattr(size, unit) * size.min_replicas for size in sizes)
        most = sum(getattr(size, unit) * size.max_replicas for size in sizes)
        if least > total + EPSILON:
            findings.refuse(
                ("nodes",),
                f"the fewest replicas of all deployments together ask for {least:g} {UNITS[unit]}, and all nodes offer "
                f"{total:g}; raise max_nodes, or lower min_replicas or {unit}",
            )
        elif most > total + EPSILON:
            findings.warn(("nodes",), _reach(sizes, unit, total, least, most))
    _check_idle(findings, sizes, pools)
    _check_head(findings, sizes, pools)


def _check_idle(findings: Findings, sizes: Sequence[Size], pools: Mapping[str, NodePool]) -> None:
    """Whether a pool that starts empty is ever needed: the others' fewest nodes may hold all replicas there can be."""
    most = {unit: sum(getattr(size, unit) * size.max_replicas for size in sizes) for unit in UNITS}
    for name, pool in pools.items():
        if pool.min_nodes or not pool.max_nodes:
            continue
        others = [other for key, other in pools.items() if key != name and other.min_nodes]
        room = {unit: sum(getattr(one, unit) * one.min_nodes for one in others) for unit in UNITS}
        fit = all(_fits(size, others) for size in sizes)
        if fit and all(most[unit] <= room[unit] + EPSILON for unit in UNITS):
            findings.warn(
                ("nodes", name),
                f"no replica ever needs a node of this pool: all at their maximum take {most['num_cpus']:g} CPUs, and "
                f"the nodes that always run offer {room['num_cpus']:g} (but on Kubernetes, where the head runs none); "
                "raise max_replicas",
            )


def _check_head(findings: Findings, sizes: Sequence[Size], pools: Mapping[str, NodePool]) -> None:
    """Whether a head without CPUs, which is to be lost without harm, has room for a replica all the same."""
    if HEAD not in pools or pools[HEAD].num_cpus or len(pools) == 1:
        return
    for size in sizes:
        if not (size.num_cpus or size.num_gpus):
            findings.warn(
                (*size.steps, "ray_actor_options", "num_cpus"),
                f"a replica of {size.name} asks for nothing, and so has room on the head, which offers none: it would "
                "be lost with it; ask for 0.1 CPU",
            )


def _fits(size: Size, pools: Sequence[NodePool]) -> bool:
    """Whether a replica, or each part of one, has room on a node of a pool."""
    cpus, gpus = size.num_cpus / size.num_bundles, size.num_gpus / size.num_bundles
    return any(pool.num_cpus + EPSILON >= cpus and pool.num_gpus + EPSILON >= gpus for pool in pools)


def _check_one(findings: Findings, size: Size, pools: Sequence[NodePool]) -> None:
    if _fits(size, pools):
        return
    cpus, gpus = size.num_cpus / size.num_bundles, size.num_gpus / size.num_bundles
    where = (*size.steps, "ray_actor_options")
    if gpus and not any(pool.num_gpus for pool in pools):
        findings.refuse(
            (*where, "num_gpus"),
            f"{size.name} asks for a GPU (got {gpus:g}), and no pool of `nodes` has one; add num_gpus to a pool",
        )
        return
    largest = max((pool.num_cpus for pool in pools), default=0)
    findings.refuse(
        (*where, "num_cpus" if cpus > largest else "num_gpus"),
        f"a replica of {size.name} ({cpus:g} CPU, {gpus:g} GPU) fits on no node of `nodes`; "
        "ask for less, or give a pool larger nodes",
    )


def _reach(sizes: Sequence[Size], unit: str, total: float, least: float, most: float) -> str:
    """Which part of the maxima the pools can hold."""
    reached = []
    for size in sizes:
        need = getattr(size, unit)
        if need and size.max_replicas > size.min_replicas:
            room = size.min_replicas + int((total - least + EPSILON) / need)
            if room < size.max_replicas:
                reached.append(f"{size.name} reaches {room} of {size.max_replicas}")
    part = "; while the others stay at their minimum " + ", ".join(reached) if reached else ""
    return (
        f"the most replicas of all deployments together ask for {most:g} {UNITS[unit]}, and all "
        f"nodes offer {total:g}: not all can be at their maximum at once{part}"
    )
