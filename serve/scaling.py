"""How many replicas a deployment should have: Ray's count of ongoing requests, but with two thresholds.

Ray's own rule has one, and what it counts here falls when a replica is added: requests that no longer queue are
answered sooner. So between the loads at which one replica overflows and two would, it adds a replica, sees calm,
takes it away after `downscale_delay_s` and overflows again, for ever.
"""

from __future__ import annotations

import math
from typing import Any

# A replica goes only if the rest would have no more than this part of the target each. It is the most at which a
# queue that is served one by one (M/M/1) comes to rest at every load.
LEAVE = 0.5
GROWTH = 2  # at most so many times the replicas that run, at once: a queue says that there is too much, not how much


def steady(context: Any) -> tuple[int, dict[str, Any]]:
    """Replicas for what is ongoing; for `autoscaling_config.policy.policy_function` in `cluster.yaml`.

    Up as soon as a replica has more than `target_ongoing_requests` on average, down where fewer would have at most
    LEAVE of it. Ray applies delays, factors and bounds around it, and pickles it into its controller.
    """
    wanted = context.total_num_requests / context.config.get_target_ongoing_requests()
    has, runs = context.target_num_replicas, context.current_num_replicas
    return replicas(wanted, has, runs), {}


def replicas(wanted: float, has: int, runs: int) -> int:
    """Replicas to ask for where `wanted` would each be at its target; `has` are asked for, and `runs` of them run."""
    up, down = math.ceil(wanted - 1e-9), math.ceil(wanted / LEAVE - 1e-9)
    if up > has:
        return max(has, min(up, GROWTH * max(runs, 1)))
    return min(has, down)
