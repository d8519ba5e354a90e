"""Ray Serve's own autoscaling, run on simulated time: the code that the controller runs, fed with simulated counts."""

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
from serve.operate.plan.agenda import Agenda
from serve.operate.plan.service import Service

LOOP_S: float = CONTROL_LOOP_INTERVAL_S
EPOCH_S = 1e9  # simulated second 0 as Ray sees it: it rounds times to 10 ms and takes them for positive
Points = Sequence[tuple[float, float]]


class _Clock:
    """Stands for the module `time` in Ray's two modules that measure delays and age counts."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda

    def time(self) -> float:
        return EPOCH_S + self._agenda.now_s

    monotonic = time


@contextlib.contextmanager
def simulated_time(agenda: Agenda) -> Iterator[None]:
    """Ray's policy code sees the agenda's time. The one place where Ray's code is touched.

    A policy of one's own must take its time from `ctx.current_time`, as Ray's documentation has it.
    """
    modules = (autoscaling_state, autoscaling_policy)
    real = [module.time for module in modules]
    logger = logging.getLogger(SERVE_LOGGER_NAME)
    level = logger.level
    try:
        for module in modules:
            module.time = _Clock(agenda)
        logger.setLevel(logging.WARNING)  # it tells of each registration
        yield
    finally:
        logger.setLevel(level)
        for module, time in zip(modules, real, strict=True):
            module.time = time


class Policy:
    """How many replicas Ray wants of each deployment that scales. Use within `simulated_time`."""

    def __init__(self, service: Service) -> None:
        self._application = service.application
        self._manager = autoscaling_state.AutoscalingStateManager()
        self._scaled: dict[str, Any] = {}  # Ray's own reading of `autoscaling_config`, with its defaults
        try:
            self._register(service)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise TabrankError(f"the autoscaling policy cannot be used: {error}") from None

    def _register(self, service: Service) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in serve.config.reader
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
        """Whether the deployment scales at all."""
        return name in self._scaled

    def push_s(self, name: str) -> float:
        """How often counts are sent to the controller."""
        return float(self._scaled[name].metrics_interval_s)

    def record_s(self, name: str) -> float:
        """How often what is ongoing is counted."""
        share: float = RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR
        return min(self.look_back_s(name) * share, self.push_s(name))

    def look_back_s(self, name: str) -> float:
        """How old a count may be that is sent."""
        return float(self._scaled[name].look_back_period_s)

    def replica_reports(self, name: str, replica: str, running: Points, at_s: float) -> None:
        """What was running at one of the deployment's replicas: how an ingress behind HAProxy is counted."""
        metrics = {RUNNING_REQUESTS_KEY: _series(running)} if running else {}
        report = ReplicaMetricReport(self._replica(name, replica), metrics, EPOCH_S + at_s)
        self._manager.record_request_metrics_for_replica(report)

    def handle_reports(
        self, name: str, handle: str, queued: Points, running: Mapping[str, Points], at_s: float
    ) -> None:
        """What waited at a handle to the deployment, and was under way through it: how all others are counted."""
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
        """What is wanted from now on; `handles` are those that live."""
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
        """The ongoing requests from which Ray decided last."""
        return float(self._manager.get_last_decision_total_num_requests_for_deployment(self._id(name)))

    def _id(self, name: str) -> DeploymentID:
        return DeploymentID(name, self._application)

    def _replica(self, name: str, replica: str) -> ReplicaID:
        return ReplicaID(replica, self._id(name))


def _series(points: Points) -> list[TimeStampedValue]:
    return [TimeStampedValue(EPOCH_S + at_s, value) for at_s, value in points]
