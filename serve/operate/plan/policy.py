"""Run Ray Serve's own autoscaling code on simulated time, with simulated counts."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    SERVE_LOGGER_NAME,
)
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.config import AutoscalingPolicy

from serve.contract.errors import TabrankError
from serve.operate.plan.event_queue import EventQueue
from serve.operate.plan.service import PlannedService

LOOP_S: float = CONTROL_LOOP_INTERVAL_S
# Simulated second 0 in Ray's clock: Ray rounds times to 10 ms and expects them to be positive.
EPOCH_S = 1e9
Points = Sequence[tuple[float, float]]


class _Clock:
    """Replacement for the module `time` in Ray's two modules that measure delays and age counts."""

    def __init__(self, events: EventQueue) -> None:
        self._events = events

    def time(self) -> float:
        return EPOCH_S + self._events.now_s

    monotonic = time


@contextlib.contextmanager
def simulated_time(events: EventQueue) -> Iterator[None]:
    """Make Ray's policy code use the simulated time; this is the only place that patches Ray.

    A custom policy must read its time from `ctx.current_time`, as Ray's documentation requires.
    """
    modules = (autoscaling_state, autoscaling_policy)
    real = [module.time for module in modules]
    logger = logging.getLogger(SERVE_LOGGER_NAME)
    level = logger.level
    try:
        for module in modules:
            module.time = _Clock(events)
        # Ray logs each registration.
        logger.setLevel(logging.WARNING)
        yield
    finally:
        logger.setLevel(level)
        for module, time in zip(modules, real, strict=True):
            module.time = time


class Policy:
    """Ray's decision on the replicas of each scaling deployment; use it within `simulated_time`."""

    def __init__(self, service: PlannedService) -> None:
        self._application = service.application
        self._manager = autoscaling_state.AutoscalingStateManager()
        # Ray's own parsed `autoscaling_config`, with its defaults.
        self._scaled: dict[str, Any] = {}
        try:
            self._register(service)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise TabrankError(f"the autoscaling policy cannot be used: {error}") from None

    def _register(self, service: PlannedService) -> None:
        with warnings.catch_warnings():
            # Ray warns about its own field declarations, as in serve.config.reader.
            warnings.simplefilter("ignore")
            if service.policy is not None:
                self._manager.register_application(self._application, AutoscalingPolicy(**service.policy))
            for deployment in (service.fetch, service.scorer):
                if deployment.autoscaling is not None:
                    config = DeploymentConfig.from_default(
                        max_ongoing_requests=deployment.max_ongoing,
                        autoscaling_config=dict(deployment.autoscaling),
                    )
                    info = DeploymentInfo(config, None, 0, "")
                    wanted = deployment.min_replicas
                    self._manager.register_deployment(self._id(deployment.name), info, wanted)
                    self._scaled[deployment.name] = config.autoscaling_config

    def scales(self, name: str) -> bool:
        """Return whether the deployment scales."""
        return name in self._scaled

    def push_s(self, name: str) -> float:
        """Return the interval at which counts are sent to the controller."""
        return float(self._scaled[name].metrics_interval_s)

    def record_s(self, name: str) -> float:
        """Return the interval at which ongoing requests are counted."""
        share: float = RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR
        return min(self.look_back_s(name) * share, self.push_s(name))

    def look_back_s(self, name: str) -> float:
        """Return the maximum age of a count that is sent."""
        return float(self._scaled[name].look_back_period_s)

    def replica_reports(self, name: str, replica: str, running: Points, at_s: float) -> None:
        """Report the running requests of a replica, as Ray counts an ingress behind HAProxy."""
        metrics = {RUNNING_REQUESTS_KEY: _series(running)} if running else {}
        report = ReplicaMetricReport(self._replica(name, replica), metrics, EPOCH_S + at_s)
        self._manager.record_request_metrics_for_replica(report)

    def handle_reports(
        self, name: str, handle: str, queued: Points, running: Mapping[str, Points], at_s: float
    ) -> None:
        """Report the calls of a handle, queued and running, as Ray counts other deployments."""
        by_replica = {
            self._replica(name, replica).to_full_id_str(): _series(points)
            for replica, points in running.items()
        }
        report = HandleMetricReport(
            self._id(name),
            handle,
            handle,
            DeploymentHandleSource.REPLICA,
            _series(queued),
            {RUNNING_REQUESTS_KEY: by_replica},
            EPOCH_S + at_s,
        )
        self._manager.record_request_metrics_for_handle(report)

    def decide(
        self, running: Mapping[str, Sequence[str]], wanted: Mapping[str, int], handles: Iterable[str]
    ) -> dict[str, int]:
        """Return the replicas wanted from now on; `handles` are the living ones."""
        if not self._scaled:
            return {}
        for name in self._scaled:
            replicas = [self._replica(name, replica) for replica in running[name]]
            self._manager.update_running_replica_ids(self._id(name), replicas)
        self._manager.drop_stale_handle_metrics(set(handles))
        now = {self._id(name): wanted[name] for name in self._scaled}
        decided = self._manager.get_decision_num_replicas(self._application, now)
        for deployment, count in decided.items():
            if count > now[deployment]:
                self._manager.record_scale_up(deployment)
            elif count < now[deployment]:
                self._manager.record_scale_down(deployment)
        return {deployment.name: int(count) for deployment, count in decided.items()}

    def ongoing(self, name: str) -> float:
        """Return the ongoing requests on which Ray's last decision was based."""
        return float(self._manager.get_last_decision_total_num_requests_for_deployment(self._id(name)))

    def _id(self, name: str) -> DeploymentID:
        return DeploymentID(name, self._application)

    def _replica(self, name: str, replica: str) -> ReplicaID:
        return ReplicaID(replica, self._id(name))


def _series(points: Points) -> list[TimeStampedValue]:
    return [TimeStampedValue(EPOCH_S + at_s, value) for at_s, value in points]
