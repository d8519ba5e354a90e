"""Autoscaling policy of a user, for the tests of `serve plan`."""


def late_two(ctx):
    """Return two replicas from the tenth second on, by the context's clock."""
    first = ctx.policy_state.get("first", ctx.current_time)
    return (2 if ctx.current_time - first >= 10 else 1), {"first": first}
