"""Autoscaling policy as a user might write it, for the tests of `serve plan`."""


def late_two(ctx):
    """Ask for two replicas from the tenth second on, by the clock of the context."""
    first = ctx.policy_state.get("first", ctx.current_time)
    return (2 if ctx.current_time - first >= 10 else 1), {"first": first}
