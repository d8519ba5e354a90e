"""Read the part of a `cluster.yaml` that decides scaling: the request path and the pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.config.pools import NodePool
from serve.config.reader import Config
from serve.config.settings import HEURISTICS, UserConfig
from serve.contract.errors import TabrankError

FETCH, SCORER = "FeatureFetch", "Scorer"
# Ray's default.
DEFAULT_MAX_ONGOING = 5


@dataclass(frozen=True)
class Deployment:
    """One deployment as the file has it; `autoscaling` is None where `num_replicas` is fixed."""

    name: str
    autoscaling: Mapping[str, Any] | None
    num_replicas: int
    max_ongoing: int
    # -1: no limit.
    max_queued: int
    # Ray's resources of a replica, such as {"CPU": 0.5}.
    needs: Mapping[str, float]
    stop_s: float

    @property
    def min_replicas(self) -> int:
        """Return the minimum number of replicas."""
        return int((self.autoscaling or {}).get("min_replicas", 1 if self.autoscaling else self.num_replicas))

    @property
    def max_replicas(self) -> int:
        """Return the maximum number of replicas."""
        return int((self.autoscaling or {}).get("max_replicas", 1 if self.autoscaling else self.num_replicas))

    @property
    def target(self) -> float | None:
        """Return Ray's target of ongoing requests per replica, or None without autoscaling."""
        return None if self.autoscaling is None else float(self.autoscaling.get("target_ongoing_requests", 2))


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
    batch_candidates: int
    # The share of rankings for which the Scorer is called.
    model_share: float
    # An autoscaling policy of the whole application.
    policy: Mapping[str, Any] | None

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        """Return all deployments."""
        return (self.fetch, self.scorer, *self.others)

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
    deployments = {name: _deployment(values, f"{where}: {name}") for name, values in declared.items()}
    if deployments[FETCH].min_replicas < 1:
        raise TabrankError(
            f"{where}: {FETCH}: min_replicas is 0; starting from zero replicas is not simulated: use 1"
        )
    knobs = declared[FETCH].get("user_config") or {}
    return PlannedService(
        application=str(application.get("name", "default")),
        fetch=deployments.pop(FETCH),
        scorer=deployments.pop(SCORER),
        others=tuple(deployments.values()),
        pools=config.nodes,
        deadline_s=int(knobs.get("deadline_ms", UserConfig.deadline_ms)) / 1e3,
        slots=int(knobs.get("slots", UserConfig.slots)),
        batch_candidates=int(knobs.get("batch_candidates", UserConfig.batch_candidates)),
        model_share=_model_share(knobs),
        policy=application.get("autoscaling_policy"),
    )


def _model_share(knobs: Mapping[str, Any]) -> float:
    if knobs.get("kill_switch"):
        return 0.0
    experiment = knobs.get("experiment") or {}
    arms = experiment.get("arms") or {"model": {"scorer": "current", "share": 1.0}}
    by_model = sum(float(arm["share"]) for arm in arms.values() if arm["scorer"] not in HEURISTICS)
    return by_model * (1 - float(experiment.get("holdout", 0.0)))


def _deployment(values: Mapping[str, Any], where: str) -> Deployment:
    autoscaling = values.get("autoscaling_config")
    if values.get("num_replicas") == "auto":
        # Ray fills in the same bounds.
        autoscaling = {"min_replicas": 1, "max_replicas": 100, **(autoscaling or {})}
    options = values.get("ray_actor_options") or {}
    needs = {"CPU": float(options.get("num_cpus", 1)), "GPU": float(options.get("num_gpus", 0))}
    if autoscaling is None and values.get("num_replicas", 1) == 0:
        raise TabrankError(f"{where}: num_replicas is 0, so no replica runs; use 1 or more")
    return Deployment(
        name=str(values["name"]),
        autoscaling=autoscaling,
        num_replicas=1 if autoscaling is not None else int(values.get("num_replicas", 1)),
        max_ongoing=int(values.get("max_ongoing_requests", DEFAULT_MAX_ONGOING)),
        max_queued=int(values.get("max_queued_requests", -1)),
        needs={name: amount for name, amount in needs.items() if amount},
        stop_s=1.0 + float(values.get("graceful_shutdown_wait_loop_s", 2.0)),
    )
