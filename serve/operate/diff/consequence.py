"""Declared table: what a change of each field of `cluster.yaml` does to the running service.

`tests/serve/operate/diff/test_consequences.py` makes the change of each row on a running service
and reads in Serve's own log what Serve did, so a row that another version of Ray contradicts fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from serve.config.known_keys import APPLICATION, DEPLOYMENT
from serve.operate.diff.field import Path


class Consequence(IntEnum):
    """Effect of a change on the running service, the mildest first."""

    NOTHING = 0
    IN_PLACE = 1
    ADDED = 2
    ROLLING = 3
    REBUILT = 4
    DELETED = 5
    RESTART = 6

    @property
    def sentence(self) -> str:
        """Return the wording in the list of changes."""
        return SENTENCES[self]


SENTENCES = {
    Consequence.NOTHING: "nothing touched",
    Consequence.IN_PLACE: "reconfigured in place",
    Consequence.ADDED: "application added",
    Consequence.ROLLING: "rolling restart",
    Consequence.REBUILT: "application rebuilt",
    Consequence.DELETED: "application deleted",
    Consequence.RESTART: "Serve restart",
}


@dataclass(frozen=True)
class Row:
    """Fields of one level, separated by spaces, whose changes have the same consequence.

    A row also covers everything below its fields, except what has a level of its own in the table.
    """

    level: Path
    fields: str
    consequence: Consequence
    # Printed beside the consequence.
    note: str = ""
    # Whether another value has no effect until Ray has another reason to apply the deployment's
    # options. A value that is new in the file, or gone from it, is such a reason.
    ignored_alone: bool = False


SCALING: Path = (*DEPLOYMENT, "autoscaling_config")
# The form `field=value` is for a change from or to this value.
TABLE = (
    # Serve reads these once, at its start.
    Row((), "proxy_location http_options grpc_options", Consequence.RESTART),
    Row((), "controller_options tracing_config", Consequence.RESTART),
    # Of the file. The processes got it in their environment.
    Row((), "folder", Consequence.RESTART, "relative paths start there"),
    # Of the controller, the proxies, and each deployment that has no `logging_config`.
    Row((), "logging_config", Consequence.IN_PLACE),
    Row(
        (),
        "target_capacity",
        Consequence.NOTHING,
        "scales all replica bounds: some replicas may start or stop",
    ),
    # Serve ignores it.
    Row(
        (),
        "nodes",
        Consequence.NOTHING,
        "on this machine; to change a cluster's nodes, render and launch it again",
    ),
    # Ray's code version of an application is a hash of these options.
    Row(APPLICATION, "import_path args runtime_env autoscaling_policy", Consequence.REBUILT),
    Row(DEPLOYMENT, "request_router_config deployment_actors", Consequence.REBUILT),
    Row(SCALING, "policy", Consequence.REBUILT),
    # The code version covers the list of all policies. One more entry changes the list, even
    # without a policy, and so does another order of deployments with different policies.
    Row(DEPLOYMENT, "autoscaling_config", Consequence.REBUILT),
    Row(
        APPLICATION, "deployments", Consequence.REBUILT, "another order of deployments with different options"
    ),
    # Of the ingress.
    Row(APPLICATION, "route_prefix", Consequence.IN_PLACE),
    # Of each deployment that has no `logging_config`.
    Row(APPLICATION, "logging_config", Consequence.IN_PLACE),
    # Allows or refuses calls of the controller.
    Row(APPLICATION, "external_scaler_enabled", Consequence.NOTHING),
    # The controller of Ray 2.60 fails on running replicas that belong to no gang.
    Row(DEPLOYMENT, "gang_scheduling_config", Consequence.RESTART, "Ray 2.60 cannot change it in place"),
    # Replicas get these when they are created.
    Row(DEPLOYMENT, "ray_actor_options", Consequence.ROLLING),
    # These too, but Ray does not look for changes of them.
    Row(DEPLOYMENT, "max_replicas_per_node placement_group_bundles", Consequence.ROLLING, ignored_alone=True),
    Row(DEPLOYMENT, "placement_group_strategy", Consequence.ROLLING, ignored_alone=True),
    Row(DEPLOYMENT, "placement_group_bundle_label_selector", Consequence.ROLLING, ignored_alone=True),
    # Serve passes these to the running replicas.
    Row(DEPLOYMENT, "user_config max_ongoing_requests logging_config", Consequence.IN_PLACE),
    Row(DEPLOYMENT, "backpressure_config graceful_shutdown_wait_loop_s", Consequence.IN_PLACE),
    Row(SCALING, "metrics_interval_s look_back_period_s", Consequence.IN_PLACE),
    # This turns autoscaling on or off, and replicas report their load for it.
    Row(DEPLOYMENT, "num_replicas=auto", Consequence.IN_PLACE),
    # The controller keeps these with each running replica.
    Row(DEPLOYMENT, "health_check_period_s health_check_timeout_s", Consequence.IN_PLACE),
    Row(DEPLOYMENT, "graceful_shutdown_timeout_s", Consequence.IN_PLACE),
    # The controller and the callers read these when they need them.
    Row(DEPLOYMENT, "num_replicas max_queued_requests", Consequence.NOTHING),
    Row(DEPLOYMENT, "rolling_update_percentage max_surge_percent", Consequence.NOTHING),
    Row(SCALING, "min_replicas max_replicas", Consequence.NOTHING),
    Row(
        SCALING,
        "initial_replicas",
        Consequence.NOTHING,
        "Ray sets the number of replicas to it now and at each later change of this deployment",
    ),
    Row(SCALING, "target_ongoing_requests aggregation_function", Consequence.NOTHING),
    Row(SCALING, "upscale_delay_s downscale_delay_s downscale_to_zero_delay_s", Consequence.NOTHING),
    Row(SCALING, "upscaling_factor downscaling_factor smoothing_factor", Consequence.NOTHING),
    Row(SCALING, "upscale_smoothing_factor downscale_smoothing_factor", Consequence.NOTHING),
)
ADDED, DELETED = (Row((), "applications", effect) for effect in (Consequence.ADDED, Consequence.DELETED))
# For a field that the table does not have, such as one of another version of Ray.
UNKNOWN = "an unknown field, so the worst is assumed"
UNKNOWN_BELOW = Row(APPLICATION, "", Consequence.REBUILT, UNKNOWN)
UNKNOWN_AT_THE_TOP = Row((), "", Consequence.RESTART, UNKNOWN)

FIELDS = {(*row.level, field): row for row in TABLE for field in row.fields.split()}
LEVELS = {row.level for row in TABLE}


def row_of(field: Path, *values: Any) -> Row:
    """Return the row of a field, named by its keys, that changes from or to one of the values."""
    for value in values:
        if isinstance(value, str) and (*field[:-1], f"{field[-1]}={value}") in FIELDS:
            return FIELDS[*field[:-1], f"{field[-1]}={value}"]
    for depth in range(len(field), 0, -1):
        if field[:depth] in FIELDS and (depth == len(field) or field[:depth] not in LEVELS):
            return FIELDS[field[:depth]]
    return UNKNOWN_BELOW if field[: len(APPLICATION)] == APPLICATION else UNKNOWN_AT_THE_TOP
