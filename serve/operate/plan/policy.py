"""Run Ray Serve's own autoscaling code on simulated time, with simulated counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray.serve import autoscaling_policy
from ray.serve._private import autoscaling_state
from ray.serve._private.common import (
    RUNNING_REQUESTS_KEY,
    DeploymentHandleSource,
    DeploymentID,
    HandleMetricReport,
    ReplicaID,
    ReplicaMetricReport,
    TimeStampedValue,
)
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.constants import (
    CONTROL_LOOP_INTERVAL_S,
    RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR,
)
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.config import AutoscalingPolicy

from serve.contract.errors import TabrankError
from serve.operate.plan.service import FETCH, SCORER, Deployment, PlannedService
from serve.operate.plan.virtual_time import VirtualTimeLoop

LOOP_S: float = CONTROL_LOOP_INTERVAL_S
# Requests are counted this often in a look-back period.
COUNT_FACTOR: float = RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR
# Simulated second 0 in Ray's clock: Ray rounds times to 10 ms and expects them to be positive.
EPOCH_S = 1e9
Series = dict[str, list[tuple[float, float]]]
"""Counts by what is counted: (second, count), ascending."""
# Requests of a FeatureFetch replica; calls of its handle that no Scorer has accepted yet.
RUNNING, QUEUED = "running", "queued"


@contextlib.contextmanager
def simulated_time(loop: VirtualTimeLoop) -> Iterator[None]:
    """Make Ray's policy code use the loop's time; this is the only place that patches Ray.

    A custom policy must read its time from `ctx.current_time`, as Ray's documentation requires.
    """

    def now_s() -> float:
        return EPOCH_S + loop.time()

    try:
        # In these two modules Ray measures delays and the age of counts.
        autoscaling_state.time = autoscaling_policy.time = SimpleNamespace(time=now_s, monotonic=now_s)
        # Ray logs each registration, and on each call a replica that fits on no node.
        logging.disable(logging.WARNING)
        yield
    finally:
        logging.disable(logging.NOTSET)
        autoscaling_state.time = autoscaling_policy.time = time


class Policy:
    """Ray's decision on the replicas of each scaling deployment; use it within `simulated_time`."""

    def __init__(self, service: PlannedService) -> None:
        self._application = service.application
        self._manager = autoscaling_state.AutoscalingStateManager()
        # Ray's own parsed `autoscaling_config`, with its defaults.
        self.scaling: dict[str, Any] = {}
        try:
            # Ray warns about its own field declarations, as in serve.config.reader.
            with warnings.catch_warnings(action="ignore"):
                if service.policy is not None:
                    self._manager.register_application(self._application, AutoscalingPolicy(**service.policy))
                for deployment in (service.fetch, service.scorer):
                    if deployment.autoscaling is not None:
                        self._register(deployment, deployment.autoscaling)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise TabrankError(f"the autoscaling policy cannot be used: {error}") from None

    def _register(self, deployment: Deployment, autoscaling: Mapping[str, Any]) -> None:
        config = DeploymentConfig.from_default(
            max_ongoing_requests=deployment.max_ongoing_requests, autoscaling_config=dict(autoscaling)
        )
        info = DeploymentInfo(config, None, 0, "")
        self._manager.register_deployment(self._id(deployment.name), info, deployment.min_replicas)
        self.scaling[deployment.name] = config.autoscaling_config

    def report(self, deployment: str, replica: str, counted: Series) -> None:
        """Report a FeatureFetch replica's counts, on which a deployment is scaled.

        FeatureFetch scales by its running requests, as Ray counts an ingress behind HAProxy; the
        Scorer by the calls of FeatureFetch's handles, queued and by the called replica.
        """
        at_s = EPOCH_S + asyncio.get_running_loop().time()
        points = {
            name: [TimeStampedValue(EPOCH_S + counted_s, count) for counted_s, count in each]
            for name, each in counted.items()
        }
        if deployment == FETCH:
            own = {RUNNING_REQUESTS_KEY: points[RUNNING]} if points else {}
            of_replica = ReplicaMetricReport(self._replica(FETCH, replica), own, at_s)
            self._manager.record_request_metrics_for_replica(of_replica)
            return
        queued = points.pop(QUEUED, [])
        calls = {self._replica(SCORER, name).to_full_id_str(): each for name, each in points.items()}
        source, running = DeploymentHandleSource.REPLICA, {RUNNING_REQUESTS_KEY: calls}
        of_handle = HandleMetricReport(self._id(SCORER), replica, replica, source, queued, running, at_s)
        self._manager.record_request_metrics_for_handle(of_handle)

    def decide(
        self, running: Mapping[str, Sequence[str]], wanted: Mapping[str, int], handles: Iterable[str]
    ) -> dict[str, int]:
        """Return the replicas wanted from now on; `handles` are the living ones."""
        if not self.scaling:
            return {}
        for name in self.scaling:
            replicas = [self._replica(name, replica) for replica in running[name]]
            self._manager.update_running_replica_ids(self._id(name), replicas)
        self._manager.drop_stale_handle_metrics(set(handles))
        now = {self._id(name): wanted[name] for name in self.scaling}
        decided = self._manager.get_decision_num_replicas(self._application, now)
        for deployment, count in decided.items():
            if count > now[deployment]:
                self._manager.record_scale_up(deployment)
            elif count < now[deployment]:
                self._manager.record_scale_down(deployment)
        return {deployment.name: int(count) for deployment, count in decided.items()}

    def ongoing(self) -> dict[str, float]:
        """Return the ongoing requests on which Ray's last decision was based, by deployment."""
        count = self._manager.get_last_decision_total_num_requests_for_deployment
        return {name: float(count(self._id(name))) for name in self.scaling}

    def _id(self, name: str) -> DeploymentID:
        return DeploymentID(name, self._application)

    def _replica(self, name: str, replica: str) -> ReplicaID:
        return ReplicaID(replica, self._id(name))
