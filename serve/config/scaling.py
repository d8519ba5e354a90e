"""Autoscaling policy with hysteresis: Ray's count of ongoing requests, with two thresholds.

Ray's own rule has one threshold, and here its count falls when a replica is added, because requests
that no longer queue are answered sooner. Between the loads that overflow one replica and two, Ray
would add a replica, see a low count, remove it after `downscale_delay_s`, and overflow again.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

# Grow to at most twice the running replicas at once: a queue shows that there is too much load, not
# how much.
GROWTH = 2


class Steady:
    """Hysteresis policy for `autoscaling_config.policy` in `cluster.yaml`.

    It scales up when a replica has more than `target_ongoing_requests` on average. It scales down
    when fewer replicas would have at most `leave` of the target each. The default is the largest
    value at which a queue served one by one (M/M/1) settles at every load. Ray applies delays,
    factors and bounds around the policy, and pickles it into its controller.
    """

    def __init__(self, leave: float = 0.5) -> None:
        if isinstance(leave, bool) or not isinstance(leave, int | float) or not 0 < leave < 1:
            raise ValueError(f"leave must be a number above 0 and below 1 (got {leave!r})")
        self._leave = leave

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas for Ray's `AutoscalingContext`, and no state."""
        wanted = context.total_num_requests / context.config.get_target_ongoing_requests()
        return self.replicas(wanted, context.target_num_replicas, context.current_num_replicas), {}

    def replicas(self, wanted: float, has: int, runs: int) -> int:
        """Return the number of replicas.

        Args:
            wanted: replicas that would each be at the target.
            has: replicas that are requested now.
            runs: replicas that run now.
        """
        up, down = math.ceil(wanted - 1e-9), math.ceil(wanted / self._leave - 1e-9)
        return max(has, min(up, GROWTH * max(runs, 1))) if up > has else min(has, down)


# The keys that `policy_kwargs` may have.
KWARGS = tuple(inspect.signature(Steady).parameters)
