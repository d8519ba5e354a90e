"""Autoscaling policies of a user's own, for the tests of `serve plan`."""

from __future__ import annotations


def three(ctx):
    """As many as three, whatever the load."""
    return 3, {}


def late_two(ctx):
    """Two from the tenth second on, by the context's clock."""
    first = ctx.policy_state.get("first", ctx.current_time)
    return (2 if ctx.current_time - first >= 10 else 1), {"first": first}
