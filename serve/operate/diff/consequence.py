"""Declared table: what a change of each field of `cluster.yaml` does to the running service.

`tests/serve/operate/diff/test_consequences.py` makes the change of each field on a running service
and reads in Serve's own log what Serve did, so a row that another version of Ray contradicts fails.
"""

from __future__ import annotations

from enum import IntEnum

from serve.config.known_keys import APPLICATION, DEPLOYMENT
from serve.operate.diff.field import Path


class Consequence(IntEnum):
    """Effect of a change on the running service, the mildest first, with its wording for people."""

    NOTHING = 0, "nothing touched"
    IN_PLACE = 1, "reconfigured in place"
    ADDED = 2, "application added"
    ROLLING = 3, "rolling restart"
    REBUILT = 4, "application rebuilt"
    DELETED = 5, "application deleted"
    RESTART = 6, "Serve restart"

    sentence: str

    def __new__(cls, rank: int, sentence: str) -> Consequence:
        """Make a member that compares by its rank."""
        member = int.__new__(cls, rank)
        member._value_, member.sentence = rank, sentence
        return member


SCALING: Path = (*DEPLOYMENT, "autoscaling_config")
ACTOR: Path = (*DEPLOYMENT, "ray_actor_options")
# Ray uses 1 where the file has none. Its hash differs from that of a 1 in the file, which is 1.0.
NUM_CPUS: Path = (*ACTOR, "num_cpus")
# To or from this value, `num_replicas` turns autoscaling on or off, and replicas report their load.
AUTO: Path = (*DEPLOYMENT, "num_replicas=auto")
# Ray does not look for changes of these. It applies them with the next change of the deployment.
IGNORED_ALONE = (
    "max_replicas_per_node",
    "placement_group_bundles",
    "placement_group_strategy",
    "placement_group_bundle_label_selector",
)
# The fields of each level, separated by spaces. A field covers what is below it, except where that
# is a level of its own here.
TABLE = {
    (): {
        # Serve reads these once, at its start. `folder` is that of the file.
        Consequence.RESTART: "proxy_location http_options grpc_options controller_options tracing_config "
        "folder",
        # Of the controller, the proxies, and each deployment that has none.
        Consequence.IN_PLACE: "logging_config",
        Consequence.NOTHING: "target_capacity nodes",
    },
    APPLICATION: {
        # Ray's code version of an application is a hash of these. `deployments` is their order.
        Consequence.REBUILT: "import_path args runtime_env autoscaling_policy deployments",
        # Of the ingress, and of each deployment that has no `logging_config`.
        Consequence.IN_PLACE: "route_prefix logging_config",
        # Allows or refuses calls of the controller.
        Consequence.NOTHING: "external_scaler_enabled",
    },
    DEPLOYMENT: {
        Consequence.RESTART: "gang_scheduling_config",
        # These are in the code version too. It has the list of all policies, which has an entry for
        # each `autoscaling_config`.
        Consequence.REBUILT: "request_router_config deployment_actors autoscaling_config",
        # Replicas get these when they are created.
        Consequence.ROLLING: f"ray_actor_options {' '.join(IGNORED_ALONE)}",
        # Serve passes these to the running replicas, or the controller keeps them with each.
        Consequence.IN_PLACE: "user_config max_ongoing_requests logging_config backpressure_config "
        "graceful_shutdown_wait_loop_s graceful_shutdown_timeout_s health_check_period_s "
        f"health_check_timeout_s {AUTO[-1]}",
        # The controller and the callers read these when they need them.
        Consequence.NOTHING: "num_replicas max_queued_requests rolling_update_percentage max_surge_percent",
    },
    SCALING: {
        Consequence.REBUILT: "policy",
        Consequence.IN_PLACE: "metrics_interval_s look_back_period_s",
        Consequence.NOTHING: "min_replicas max_replicas initial_replicas target_ongoing_requests "
        "aggregation_function upscale_delay_s downscale_delay_s downscale_to_zero_delay_s "
        "upscaling_factor downscaling_factor smoothing_factor upscale_smoothing_factor "
        "downscale_smoothing_factor",
    },
}
FIELDS = {
    (*level, field): consequence
    for level, rows in TABLE.items()
    for consequence, names in rows.items()
    for field in names.split()
}
# Printed beside the consequence.
NOTES = {
    ("folder",): "relative paths start there",
    ("target_capacity",): "scales all replica bounds: some replicas may start or stop",
    ("nodes",): "on this machine; to change a cluster's nodes, render and launch it again",
    DEPLOYMENT: "another order of deployments with different options",
    # The controller fails on running replicas that belong to no gang.
    (*DEPLOYMENT, "gang_scheduling_config"): "Ray 2.60 cannot change it in place",
    (*SCALING, "initial_replicas"): "Ray sets the number of replicas to it now and at each later change of "
    "this deployment",
}
# For a field that the table does not have, such as one of another version of Ray.
UNKNOWN = "an unknown field, so the worst is assumed"


def row_of(field: Path) -> tuple[Consequence, str]:
    """Return the consequence of a change of a field, which its keys name, and a note."""
    for depth in range(len(field), 0, -1):
        known = field[:depth]
        if known in FIELDS and (depth == len(field) or known not in TABLE):
            return FIELDS[known], NOTES.get(known, "")
    below = field[: len(APPLICATION)] == APPLICATION
    return Consequence.REBUILT if below else Consequence.RESTART, UNKNOWN
