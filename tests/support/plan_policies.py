"""Autoscaling policies of a user, for the tests of `serve plan`."""

from __future__ import annotations

import math


def three(ctx):
    """Return three replicas, whatever the load."""
    return 3, {}


def late_two(ctx):
    """Return two replicas from the tenth second on, by the context's clock."""
    first = ctx.policy_state.get("first", ctx.current_time)
    return (2 if ctx.current_time - first >= 10 else 1), {"first": first}


def steady(ctx):
    """Apply two thresholds: the policy of the runs in `serve/plan_runs`."""
    wanted = ctx.total_num_requests / ctx.config.get_target_ongoing_requests()
    has = ctx.target_num_replicas
    up, down = math.ceil(wanted - 1e-9), math.ceil(wanted / 0.6 - 1e-9)
    if up > has:
        return max(has, min(up, 2 * max(ctx.current_num_replicas, 1))), {}
    return min(has, down), {}
