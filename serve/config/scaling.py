"""How many replicas a deployment should have: Ray's count of ongoing requests, but with two thresholds.

Ray's own rule has one, and what it counts here falls when a replica is added: requests that no longer queue are
answered sooner. So between the loads at which one replica overflows and two would, it adds a replica, sees calm,
takes it away after `downscale_delay_s` and overflows again, for ever.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

GROWTH = 2  # at most so many times the replicas that run, at once: a queue says that there is too much, not how much


class Steady:
    """Replicas for what is ongoing; for `autoscaling_config.policy` in `cluster.yaml`.

    Up as soon as a replica has more than `target_ongoing_requests` on average; down where fewer would have at most
    `leave` of it each. By default that is the most at which a queue that is served one by one (M/M/1) comes to rest
    at every load. Ray applies delays, factors and bounds around it, and pickles it into its controller.
    """

    def __init__(self, leave: float = 0.5) -> None:
        if isinstance(leave, bool) or not isinstance(leave, int | float) or not 0 < leave < 1:
            raise ValueError(f"leave must be a number above 0 and below 1 (got {leave!r})")
        self._leave = leave

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """What Ray's `AutoscalingContext` asks for, and no state."""
        wanted = context.total_num_requests / context.config.get_target_ongoing_requests()
        return self.replicas(wanted, context.target_num_replicas, context.current_num_replicas), {}

    def replicas(self, wanted: float, has: int, runs: int) -> int:
        """Replicas where `wanted` would each be at its target; `has` are asked for, and `runs` of them run."""
        up, down = math.ceil(wanted - 1e-9), math.ceil(wanted / self._leave - 1e-9)
        if up > has:
            return max(has, min(up, GROWTH * max(runs, 1)))
        return min(has, down)


KWARGS = tuple(inspect.signature(Steady).parameters)
"""What `policy_kwargs` may name."""
