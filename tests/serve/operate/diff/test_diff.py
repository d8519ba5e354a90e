"""Compare small documents: each row of the table in docs/operations.md, and the printed list."""

from __future__ import annotations

import copy
import warnings

import pytest

from serve.config.application import DEPLOYMENTS, OUR_INGRESS
from serve.contract.errors import TabrankError
from serve.operate.diff import difference
from serve.operate.diff.consequence import FIELDS, UNKNOWN, Consequence, row_of
from serve.operate.host.field import text
from serve.operate.host.kill_switch import switched
from serve.operate.host.service_state import ApplicationState, DeploymentState
from tests.support.config_document import replaced

DOCUMENT = {
    "http_options": {"host": "127.0.0.1", "port": 8000},
    "applications": [
        {
            "name": "shop",
            "route_prefix": "/",
            "import_path": "shop:build",
            "args": {"days": 1},
            "deployments": [
                {
                    "name": "Front",
                    "max_ongoing_requests": 100,
                    "max_surge_percent": 100,
                    "autoscaling_config": {"min_replicas": 1, "max_replicas": 2, "upscale_delay_s": 3},
                    "ray_actor_options": {"num_cpus": 0.5},
                    "user_config": {"knob": 1},
                    "max_replicas_per_node": 4,
                },
                {"name": "Back", "num_replicas": 2, "health_check_period_s": 5},
            ],
        }
    ],
}


def running(ingress, *names):
    deployments = {name: DeploymentState() for name in names}
    return ApplicationState(ingress=ingress, deployments=deployments)


RUNNING = {"shop": running("Front", "Front", "Back"), "spaces": running(OUR_INGRESS, *DEPLOYMENTS)}
OURS = {"applications": [{"name": "spaces", "import_path": "serve.app:build", "args": {"surface": "spaces"}}]}


def changed(path, value, document=DOCUMENT):
    return replaced(document, tuple(path.split("/")), value)


def compare(old, new, applications=RUNNING):
    return difference.compare(old, new, applications)


def compared(path, value):
    return compare(DOCUMENT, changed(path, value))


SHOP = "applications/shop"
FRONT, BACK = f"{SHOP}/deployments/Front", f"{SHOP}/deployments/Back"


# The field that changes, its new value, the consequence, and the deployments it affects.
TABLE = [
    (f"{FRONT}/autoscaling_config/max_replicas", 9, "nothing", ""),
    (f"{FRONT}/autoscaling_config/upscale_delay_s", 9, "nothing", ""),
    (f"{FRONT}/autoscaling_config/look_back_period_s", 9, "in_place", "Front"),
    (f"{BACK}/num_replicas", 3, "nothing", ""),
    (f"{BACK}/max_queued_requests", 9, "nothing", ""),
    (f"{BACK}/max_surge_percent", 100, "nothing", ""),
    (f"{FRONT}/user_config/knob", 2, "in_place", "Front"),
    (f"{FRONT}/max_ongoing_requests", 99, "in_place", "Front"),
    (f"{BACK}/health_check_period_s", 9, "in_place", "Back"),
    (f"{BACK}/graceful_shutdown_timeout_s", 9, "in_place", "Back"),
    (f"{BACK}/backpressure_config/status_code", 429, "in_place", "Back"),
    (f"{BACK}/logging_config/log_level", "DEBUG", "in_place", "Back"),
    (f"{SHOP}/route_prefix", "/shop", "in_place", "Front"),
    (f"{FRONT}/ray_actor_options/num_cpus", 0.25, "rolling", "Front"),
    (f"{BACK}/max_replicas_per_node", 2, "rolling", "Back"),
    (f"{SHOP}/args/days", 2, "rebuilt", "Front Back"),
    (f"{SHOP}/import_path", "shop:other", "rebuilt", "Front Back"),
    (f"{SHOP}/runtime_env/env_vars", {"A": "b"}, "rebuilt", "Front Back"),
    (f"{FRONT}/autoscaling_config/policy", {"policy_function": "no_such:policy"}, "rebuilt", "Front Back"),
    (f"{BACK}/request_router_config", {"initial_backoff_s": 0.1}, "rebuilt", "Front Back"),
    ("target_capacity", 50, "nothing", ""),
    ("http_options/port", 8001, "restart", ""),
    ("proxy_location", "HeadOnly", "restart", ""),
    ("grpc_options/port", 9001, "restart", ""),
    ("tracing_config/enabled", True, "restart", ""),
    ("controller_options/runtime_env", {"env_vars": {"A": "b"}}, "restart", ""),
]


def test_each_change_does_what_the_table_says_whatever_else_changes():
    document = DOCUMENT
    for path, value, *_ in TABLE:
        document = changed(path, value, document)
    found = {text(change.path): change for change in compare(DOCUMENT, document).changes}
    assert len(found) == len(TABLE)
    for path, _, does, touched in TABLE:
        where = text(tuple(path.split("/")))
        change = next(c for name, c in found.items() if where.startswith(name))
        effect = (change.consequence.name.lower(), set(change.touched))
        assert effect == (does, {f"shop/{name}" for name in touched.split()}), path


def test_a_logging_config_reaches_every_deployment_that_has_none():
    (change,) = compared("logging_config/log_level", "DEBUG").changes
    assert (change.consequence, change.touched) == (
        Consequence.IN_PLACE,
        ("shop/Front", "shop/Back"),
    )


def test_placement_groups_are_rolled_out():
    assert compared(f"{BACK}/placement_group_bundles", [{"CPU": 1}]).worst == Consequence.ROLLING


def test_a_change_behind_a_yaml_alias_affects_one_deployment_only():
    options = {"num_cpus": 0.5}
    both = [{"name": name, "ray_actor_options": options} for name in ("Front", "Back")]
    old = {"applications": [{"name": "shop", "import_path": "shop:build", "deployments": both}]}
    (change,) = compare(old, changed(f"{BACK}/ray_actor_options/num_cpus", 1, old)).changes
    assert change.touched == ("shop/Back",)


def test_from_a_number_of_replicas_to_autoscaling_rebuilds_the_application():
    document = changed(f"{BACK}/autoscaling_config", {"min_replicas": 2, "max_replicas": 2})
    document["applications"][0]["deployments"][1].pop("num_replicas")
    assert compare(DOCUMENT, document).worst == Consequence.REBUILT


def test_defaults_that_are_written_out_are_no_change():
    document = DOCUMENT
    for path, value in (
        ("http_options/keep_alive_timeout_s", 90),
        (f"{BACK}/max_queued_requests", -1),
        (f"{BACK}/max_ongoing_requests", 5),
        (f"{FRONT}/autoscaling_config/downscale_delay_s", 600),
        (f"{FRONT}/ray_actor_options/num_cpus", 0.50),
    ):
        document = changed(path, value, document)
    found = compare(DOCUMENT, document)
    assert (found.changes, found.lines()) == ((), ["no differences"])


def test_applications_come_and_go():
    new = copy.deepcopy(DOCUMENT)
    new["applications"].append({"name": "other", "import_path": "a:b", "route_prefix": "/other"})
    added, deleted = compare(DOCUMENT, new), compare(new, DOCUMENT)
    assert (added.worst, deleted.worst) == (Consequence.ADDED, Consequence.DELETED)
    assert added.lines()[:2] == [
        'applications[other]: (not set) → {"name": "other", "import_path": "a:b", "route_prefix": "/o…',
        "    application added",
    ]
    new["applications"][0]["name"] = "renamed"
    both = compare(DOCUMENT, new)
    assert sorted(change.consequence.name for change in both.changes) == ["ADDED", "ADDED", "DELETED"]


def test_each_field_is_listed_with_its_own_effect_and_the_worst_is_last():
    new = changed(f"{FRONT}/user_config/knob", 2, changed(f"{FRONT}/ray_actor_options/num_cpus", 1))
    new["applications"][0]["deployments"][0].pop("max_ongoing_requests")
    assert compare(DOCUMENT, new).lines() == [
        "applications[shop].deployments[Front].max_ongoing_requests: 100 → (default 5)",
        "    reconfigured in place",
        "applications[shop].deployments[Front].ray_actor_options.num_cpus: 0.5 → 1",
        "    rolling restart",
        "applications[shop].deployments[Front].user_config.knob: 1 → 2",
        "    reconfigured in place",
        "shop/Front: rolling restart",
        "3 changes; at worst: rolling restart",
    ]


def test_other_bounds_say_which_replicas_start_or_stop():
    for path, value, bounds in (
        (f"{FRONT}/autoscaling_config/max_replicas", 4, (1, 2, 1, 4)),
        (f"{BACK}/num_replicas", 1, (2, 2, 1, 1)),
    ):
        (change,) = compared(path, value).changes
        assert (change.consequence, change.note) == (Consequence.NOTHING, difference.MOVES.format(*bounds))


def test_bounds_that_stay_what_they_are_move_no_replica():
    (added,) = compared(f"{BACK}/autoscaling_config", {"min_replicas": 2, "max_replicas": 2}).changes
    assert added.note == ""


def test_a_min_above_the_old_max_is_judged_after_the_max():
    new = changed(f"{FRONT}/autoscaling_config/max_replicas", 5)
    new = changed(f"{FRONT}/autoscaling_config/min_replicas", 3, new)
    new = changed(f"{FRONT}/autoscaling_config/look_back_period_s", 7, new)
    found = {change.path[-1]: change.consequence.name for change in compare(DOCUMENT, new).changes}
    assert found == {"min_replicas": "NOTHING", "max_replicas": "NOTHING", "look_back_period_s": "IN_PLACE"}


def test_a_change_that_ray_ignores_takes_effect_with_the_next_one():
    alone = compared(f"{FRONT}/max_replicas_per_node", 3)
    assert alone.worst == Consequence.NOTHING
    assert alone.changes[0].note.startswith("Ray ignores it")
    both = compare(
        DOCUMENT, changed(f"{FRONT}/user_config/knob", 2, changed(f"{FRONT}/max_replicas_per_node", 3))
    )
    assert {change.path[4]: change.consequence.name for change in both.changes} == {
        "max_replicas_per_node": "ROLLING",
        "user_config": "IN_PLACE",
    }


def test_a_restart_of_the_only_replica_without_surge_is_called_a_gap():
    new = changed(f"{BACK}/num_replicas", 1)
    assert compare(new, changed(f"{BACK}/ray_actor_options/num_cpus", 0, new)).lines()[-2] == (
        "shop/Back: rolling restart; "
        "a gap: the only replica stops before the next one starts (max_surge_percent: 0)"
    )


def test_another_order_of_deployments_is_assumed_to_rebuild_the_application():
    (change,) = compare(DOCUMENT, {**DOCUMENT, "applications": [_reversed(DOCUMENT)]}).changes
    assert (change.consequence, change.new) == (Consequence.REBUILT, ["Back", "Front"])
    added = {**DOCUMENT["applications"][0]["deployments"][0], "name": "Third"}
    more = copy.deepcopy(DOCUMENT)
    more["applications"][0]["deployments"].insert(0, added)
    assert ("applications", "shop", "deployments") not in [
        one.path for one in compare(DOCUMENT, more).changes
    ]


def _reversed(document):
    app = document["applications"][0]
    return {**app, "deployments": app["deployments"][::-1]}


def test_a_deployment_missing_in_the_file_is_rebuilt_with_its_application():
    found = compare(
        DOCUMENT, changed(f"{SHOP}/args/days", 2), {"shop": running("Front", "Front", "Back", "Third")}
    )
    assert found.deployments["shop"]["Third"][0] == Consequence.REBUILT


def test_pools_of_nodes_touch_nothing():
    old, new = ({"workers": {"num_cpus": 8, "min_nodes": 0, "max_nodes": most}} for most in (1, 4))
    (change,) = compare({**DOCUMENT, "nodes": old}, {**DOCUMENT, "nodes": new}).changes
    assert (text(change.path), change.old, change.new) == ("nodes.workers.max_nodes", 1, 4)
    assert change.consequence == Consequence.NOTHING


def test_a_written_default_is_a_change_of_an_argument_but_not_of_a_setting():
    settings = "applications/spaces/deployments/FeatureFetch/user_config"
    assert compare(OURS, changed(f"{settings}/max_batches_in_flight", 2, OURS)).changes == ()
    assert compare(OURS, changed(f"{settings}/max_batches_in_flight", 3, OURS)).worst == Consequence.IN_PLACE
    found = compare(OURS, changed("applications/spaces/args/keep_log_days", 30, OURS))
    # Ray's code version covers the text of the arguments.
    assert found.worst == Consequence.REBUILT
    assert set(found.deployments["spaces"]) == {"FeatureFetch", "Scorer", "Ingest"}
    assert found.plain()["changes"][0]["old_default"] == 30


def test_the_kill_switch_is_turned_in_every_application_of_ours_and_back():
    both = {
        "applications": [OURS["applications"][0] | {"route_prefix": "/spaces"}, *DOCUMENT["applications"]]
    }
    on = switched(both, True)
    assert on["applications"][0]["deployments"] == [
        {"name": "FeatureFetch", "user_config": {"kill_switch": True}}
    ]
    assert on["applications"][1] == DOCUMENT["applications"][0]
    assert compare(both, on).worst == Consequence.IN_PLACE
    assert compare(both, switched(on, False)).changes == ()
    with pytest.raises(TabrankError, match=r"no application of serve\.app:build runs here"):
        switched(DOCUMENT, True)


def test_a_password_in_the_store_is_not_shown():
    old, other = (
        changed("applications/spaces/args/store", f"redis://ann:hunter{i}@store:6379/0", OURS) for i in (2, 3)
    )
    for new in (OURS, other, {"applications": []}):
        for before, after in ((old, new), (new, old)):
            found = compare(before, after)
            assert found.changes
            assert "hunter" not in repr(found.plain()) + "".join(found.lines())


def test_the_table_has_a_row_for_each_field_that_ray_knows_and_no_other():
    with warnings.catch_warnings():
        # Ray warns of its own declarations of fields.
        warnings.simplefilter("ignore")
        from serve.config.ray_schema import ray_levels
    fields = {(*level, key) for level, keys in ray_levels().items() for key in keys}
    unknown = {field for field in fields if row_of(field)[1] == UNKNOWN}
    # A name is not a setting, and the list of applications has a row for each of its fields.
    assert unknown == {("applications",), ("applications", "name"), ("applications", "deployments", "name")}
    assert {field for field in FIELDS if field not in fields} == {
        ("nodes",),
        ("folder",),
        ("applications", "deployments", "num_replicas=auto"),
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("new_option", "restart"),
        (f"{SHOP}/new_option", "rebuilt"),
        (f"{BACK}/new_option", "rebuilt"),
        (f"{FRONT}/autoscaling_config/new_option", "rebuilt"),
    ],
)
def test_an_unknown_field_is_assumed_to_do_the_worst_and_says_so(path, expected):
    (change,) = compared(path, 1).changes
    assert (change.consequence.name.lower(), change.note) == (expected, UNKNOWN)


def test_an_option_of_placement_is_applied_with_another_change_that_reaches_its_deployment():
    ignored = changed(f"{FRONT}/max_replicas_per_node", 3)
    for path, value in ((f"{FRONT}/max_ongoing_requests", 9), ("target_capacity", 50)):
        found = compare(DOCUMENT, changed(path, value, ignored))
        assert found.deployments["shop"]["Front"][0] == Consequence.ROLLING, path
    # Ray does not apply it with a change of another deployment.
    found = compare(DOCUMENT, changed(f"{BACK}/max_queued_requests", 9, ignored))
    assert [change.consequence for change in found.changes] == [Consequence.NOTHING] * 2
    assert compared(f"{BACK}/max_replicas_per_node", 3).worst == Consequence.ROLLING


def test_a_written_default_of_num_cpus_restarts_replicas_once_ray_applies_it():
    empty = changed(f"{FRONT}/ray_actor_options", {})
    written = changed(f"{FRONT}/ray_actor_options", {"num_cpus": 1})
    assert compared(f"{BACK}/ray_actor_options", {"num_cpus": 1}).worst == Consequence.ROLLING
    (alone,) = compare(empty, written).changes
    assert (alone.consequence, alone.note) == (Consequence.NOTHING, difference.IGNORED)
    assert compare(empty, changed(f"{FRONT}/max_surge_percent", 0, written)).worst == Consequence.ROLLING


def test_ray_hashes_the_text_of_numbers_and_compares_their_values():
    truth = changed(f"{FRONT}/user_config/knob", True)
    assert compare(DOCUMENT, truth).changes[0].note == difference.IGNORED
    assert compare(DOCUMENT, changed(f"{FRONT}/max_surge_percent", 0, truth)).worst == Consequence.IN_PLACE
    assert compared(f"{SHOP}/args/days", 1.0).worst == Consequence.REBUILT
    assert compared(f"{FRONT}/autoscaling_config/upscale_delay_s", 3.0).changes == ()


def test_num_replicas_auto_reconfigures_where_it_turns_autoscaling_on():
    assert compared(f"{BACK}/num_replicas", "auto").worst == Consequence.IN_PLACE
    assert compared(f"{FRONT}/num_replicas", "auto").worst == Consequence.NOTHING
