"""Read the part of a `cluster.yaml` that decides scaling: the request path and the pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.config.pools import NodePool
from serve.config.reader import Config
from serve.config.settings import HEURISTICS, UserConfig
from serve.config.sizes import Size
from serve.contract.errors import TabrankError

FETCH, SCORER = "FeatureFetch", "Scorer"


@dataclass(frozen=True)
class Deployment(Size):
    """One deployment of the file."""

    # `autoscaling_config`, with the bounds of `num_replicas: auto`; None where the number is fixed.
    autoscaling: Mapping[str, Any] | None
    # -1: no limit.
    max_queued_requests: int

    @property
    def needs(self) -> dict[str, float]:
        """Return Ray's resources of a replica, such as {"CPU": 0.5}."""
        needs = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: amount for name, amount in needs.items() if amount}


@dataclass(frozen=True)
class PlannedService:
    """Request path, and the pools on which it runs."""

    application: str
    fetch: Deployment
    scorer: Deployment
    # Not simulated; they only use room on the nodes.
    others: tuple[Deployment, ...]
    pools: Mapping[str, NodePool]
    deadline_s: float
    slots: int
    max_batch_candidates: int
    # The share of rankings for which the Scorer is called.
    model_share: float
    # An autoscaling policy of the whole application.
    policy: Mapping[str, Any] | None

    @property
    def targets(self) -> list[tuple[Deployment, float]]:
        """Return the deployments of the request path that Ray scales, with their targets."""
        path = (self.fetch, self.scorer)
        return [(each, each.target_ongoing_requests) for each in path if each.target_ongoing_requests]

    @property
    def scaled(self) -> list[Deployment]:
        """Return the deployments of the request path whose number of replicas may change."""
        return [each for each in (self.fetch, self.scorer) if each.max_replicas > each.min_replicas]


def read_service(config: Config) -> PlannedService:
    """Return the application with the deployments FeatureFetch and Scorer.

    Raise TabrankError where there is none, or one that cannot be planned.
    """
    named = [
        (i, application)
        for i, application in enumerate(config.serve["applications"])
        if {FETCH, SCORER} <= {deployment["name"] for deployment in application.get("deployments", [])}
    ]
    if not named:
        raise TabrankError(
            f"{config.path}: no application lists the deployments {FETCH} and {SCORER}; there is nothing to plan"
        )
    i, application = named[0]
    where = f"{config.path}: applications[{i}]"
    declared = {values["name"]: values for values in application["deployments"]}
    sizes = {size.name: size for size in config.sizes if size.at.steps[:2] == ("applications", i)}
    deployments = {
        name: _deployment(values, sizes[name], f"{where}: {name}") for name, values in declared.items()
    }
    if deployments[FETCH].min_replicas < 1:
        raise TabrankError(
            f"{where}: {FETCH}: min_replicas is 0; starting from zero replicas is not simulated: use 1"
        )
    live = UserConfig.from_mapping(declared[FETCH].get("user_config") or {}, f"{where}: {FETCH}: user_config")
    return PlannedService(
        application=str(application.get("name", "default")),
        fetch=deployments.pop(FETCH),
        scorer=deployments.pop(SCORER),
        others=tuple(deployments.values()),
        pools=config.nodes,
        deadline_s=live.deadline_ms / 1e3,
        slots=live.max_batches_in_flight,
        max_batch_candidates=live.max_batch_candidates,
        model_share=_model_share(live),
        policy=application.get("autoscaling_policy"),
    )


def _model_share(live: UserConfig) -> float:
    if live.kill_switch:
        return 0.0
    by_model = sum(arm.share for arm in live.experiment.arms if arm.scorer not in HEURISTICS)
    return by_model * (1 - live.experiment.holdout)


def _deployment(values: Mapping[str, Any], size: Size, where: str) -> Deployment:
    if values.get("num_replicas") == 0 and size.target_ongoing_requests is None:
        raise TabrankError(f"{where}: num_replicas is 0, so no replica runs; use 1 or more")
    autoscaling = values.get("autoscaling_config")
    if values.get("num_replicas") == "auto":
        bounds = {"min_replicas": size.min_replicas, "max_replicas": size.max_replicas}
        autoscaling = {**(autoscaling or {}), **bounds}
    return Deployment(
        **vars(size), autoscaling=autoscaling, max_queued_requests=values.get("max_queued_requests", -1)
    )
