"""Run a deployment's autoscaling policy, and Ray's own factors and delays, on simulated time."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import (
    _apply_delay_logic,
    _apply_scaling_factors,
    _get_cold_start_scale_up_replicas,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve.contract.errors import TabrankError

AGGREGATE: Mapping[str, Callable[[deque[float]], float]] = {"mean": fmean, "max": max, "min": min}


class Autoscaler:
    """Ray's decision on the replicas of one deployment, asked once a second.

    A custom policy must read its time from `ctx.current_time`, as Ray's documentation requires.
    """

    def __init__(self, name: str, autoscaling: Mapping[str, Any]) -> None:
        self.name = name
        try:
            # Ray warns about its own field declarations, as in serve.config.reader.
            with warnings.catch_warnings(action="ignore"):
                self.config = AutoscalingConfig(**autoscaling)
            policy: Any = self.config.policy.get_policy()
            if inspect.isclass(policy):
                policy = policy(**self.config.policy.policy_kwargs)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise TabrankError(f"{name}: the autoscaling policy cannot be used: {error}") from None
        self._policy = policy
        self._counted: deque[float] = deque(maxlen=max(round(self.config.look_back_period_s), 1))
        # The state of the policy, and that of Ray's delays.
        self._state: dict[str, Any] = {}
        self._delays: dict[str, Any] = {}
        self._reported_s = -math.inf
        # The number of ongoing requests that the controller knows.
        self.total = 0.0

    @property
    def num_needed(self) -> int:
        """Return how many replicas are needed so that none exceeds its target."""
        target: float = self.config.get_target_ongoing_requests()
        return math.ceil(self.total / target - 1e-9)

    def begin(self, ongoing: float) -> int:
        """Return the number of replicas if this many requests have been ongoing for long."""
        self.total = ongoing
        return self._bounded(self.num_needed)

    def decide(self, now_s: float, ongoing: float, num_running: int, num_wanted: int) -> int:
        """Return the number of replicas wanted from now on, for the requests ongoing now."""
        self._counted.append(ongoing)
        if now_s - self._reported_s >= self.config.metrics_interval_s:
            self._reported_s = now_s
            self.total = AGGREGATE[self.config.aggregation_function](self._counted)
        context = AutoscalingContext(
            deployment_id=DeploymentID(self.name),
            deployment_name=self.name,
            app_name=None,
            current_num_replicas=num_running,
            target_num_replicas=num_wanted,
            running_replicas=[],
            total_num_requests=self.total,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=self.config.min_replicas,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state={**self._state, **self._delays},
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now_s,
            config=self.config,
        )
        decided = _get_cold_start_scale_up_replicas(context)
        if decided is None:
            desired, self._state = self._policy(context)
            scaled = max(_apply_scaling_factors(desired, num_running, self.config), 0)
            decided, self._delays = _apply_delay_logic(
                scaled, num_wanted, self.config, self._delays, _now=now_s
            )
        return self._bounded(decided)

    def _bounded(self, count: float) -> int:
        return int(min(max(count, self.config.min_replicas), self.config.max_replicas))
