"""Make the change of each row of the table of consequences on a running service.

One deploy makes changes of several rows, each in a deployment or an application of its own.
"""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from collections import ChainMap
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pytest
import yaml

from serve.operate.diff.apply import diff
from serve.operate.diff.consequence import FIELDS, IGNORED_ALONE, Consequence
from serve.operate.host.field import get, level_of
from serve.operate.host.run_folder import RunFolder
from serve.operate.host.state import status
from serve.operate.run.local_cluster import down, up
from tests.support.config_document import replaced

pytestmark = pytest.mark.integration
# What Serve does with each field changes with Ray's version alone, and its deploys take a minute or
# two. `test_diff.py` compares with the table what `diff` says.
proof = pytest.mark.proof
APPLICATION = """
import json, os
import ray
from ray import serve

@serve.deployment
class Part:
    def __init__(self, word="", parts=()):
        self.word, self.parts, self.knob = word, parts, None

    def reconfigure(self, user_config):
        self.knob = user_config["knob"]

    def knob_of(self):
        return self.knob

    async def __call__(self, request):
        knobs = [await part.knob_of.remote() for part in self.parts]
        return {"word": self.word, "label": os.environ.get("LABEL"), "knobs": [self.knob, *knobs]}

def build(args):
    parts = [Part.options(name=name).bind() for name in args.get("parts", ())]
    return Part.options(name="Front").bind(args["word"], parts)

def other(args):
    return build(args)

def policy(context):
    return context.current_num_replicas, {}

def policies(contexts):
    return {name: context.current_num_replicas for name, context in contexts.items()}, {}

@ray.remote(num_cpus=0)
class Helper:
    pass
"""
QUICK = {
    "graceful_shutdown_wait_loop_s": 0.05,
    "graceful_shutdown_timeout_s": 1,
    "max_surge_percent": 100,
    "ray_actor_options": {"num_cpus": 0.1},
}
SCALING = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "downscale_delay_s": 600}
SHOP, OTHER, FOURTH = (f"applications/{name}" for name in ("shop", "other", "fourth"))


def application(name, *parts, **options):
    """Return an application of Front and some parts."""
    deployments = [QUICK | {"name": part, "user_config": {"knob": 1}} for part in ("Front", *parts)]
    args = {"word": "one", "parts": list(parts)}
    app = {"name": name, "route_prefix": f"/{name}", "import_path": "shop:build", "args": args}
    return app | {"deployments": deployments} | options


# The changes of each application or deployment, one after the other. One deploy makes the next
# change of every list. Changes that touch nothing are made together: that nothing is touched
# verifies each of them.
CHANGES: dict[str, list[dict[str, Any]]] = {
    # These reach every application.
    "": [
        *({} for _ in range(7)),
        {"target_capacity": 100, "nodes": {"head": {"num_cpus": 2, "min_nodes": 1, "max_nodes": 1}}},
        {"logging_config": {"enable_access_log": False}},
    ],
    SHOP: [
        # The order: Front comes last.
        {"deployments": "Front"},
        *({} for _ in range(6)),
        {"route_prefix": "/another"},
        {"logging_config": {"log_level": "DEBUG"}},
    ],
    f"{SHOP}/deployments/Front": [
        {},
        {
            "autoscaling_config/min_replicas": 0,
            "autoscaling_config/initial_replicas": 1,
            "autoscaling_config/max_replicas": 3,
            "autoscaling_config/target_ongoing_requests": 3,
            "autoscaling_config/aggregation_function": "max",
            "autoscaling_config/upscale_delay_s": 9,
            "autoscaling_config/downscale_delay_s": 500,
            "autoscaling_config/downscale_to_zero_delay_s": 900,
            "autoscaling_config/upscaling_factor": 0.9,
            "autoscaling_config/downscaling_factor": 0.9,
            "autoscaling_config/smoothing_factor": 0.9,
            "autoscaling_config/upscale_smoothing_factor": 0.9,
            "autoscaling_config/downscale_smoothing_factor": 0.9,
        },
        {"autoscaling_config/look_back_period_s": 12},
        {"autoscaling_config/metrics_interval_s": 5},
        {"graceful_shutdown_timeout_s": 2},
        {"health_check_timeout_s": 20},
        {"health_check_period_s": 5},
    ],
    f"{SHOP}/deployments/Back": [
        {},
        {"max_replicas_per_node": 8},
        {"max_replicas_per_node": 9},
        # Ray applies the number of replicas per node with it.
        {"ray_actor_options/num_cpus": 0.2},
        {"user_config/knob": 2},
        {"max_ongoing_requests": 50},
        {"backpressure_config": {"status_code": 429}},
        {"graceful_shutdown_wait_loop_s": 0.1},
    ],
    f"{SHOP}/deployments/Bundled": [
        {},
        {"placement_group_bundles": [{"CPU": 0.1}]},
        {"placement_group_strategy": "SPREAD"},
        {"placement_group_bundle_label_selector": [{"pool": "!other"}]},
        {"num_replicas": "auto"},
        {"logging_config/log_level": "WARNING"},
        {},
        # Ray applies these with `target_capacity`.
        {
            "placement_group_bundles": [{"CPU": 0.2}],
            "placement_group_strategy": "PACK",
            "placement_group_bundle_label_selector": [{"pool": "!another"}],
        },
    ],
    OTHER: [
        {"args/word": "four"},
        {"import_path": "shop:other"},
        {"runtime_env": {"env_vars": {"LABEL": "x"}}},
        {"deployments/Front/request_router_config": {"initial_backoff_s": 0.1}},
        {"deployments/Front/deployment_actors": [{"name": "helper", "actor_class": "shop:Helper"}]},
        {"deployments/Front/autoscaling_config/policy": {"policy_function": "shop:policy"}},
        {"deployments/Front/autoscaling_config": ...},
        {"autoscaling_policy": {"policy_function": "shop:policies"}},
    ],
    FOURTH: [
        *({}, {}, {}),
        {"": application("fourth")},
        {
            "external_scaler_enabled": True,
            "deployments/Front/num_replicas": 2,
            "deployments/Front/max_queued_requests": 50,
            "deployments/Front/rolling_update_percentage": 0.5,
            "deployments/Front/max_surge_percent": 50,
        },
        {"": ...},
    ],
}
# The changes that need a restart of Serve, beside another folder.
RESTARTS = {
    "proxy_location": "EveryNode",
    "http_options/port": 8001,
    "grpc_options/port": 9001,
    "controller_options/runtime_env": {"env_vars": {"A": "b"}},
    "tracing_config/enabled": True,
    f"{OTHER}/deployments/Front/gang_scheduling_config": {"gang_size": 1},
}
# What Serve's controller logs of a deployment, and of an application that is built anew. A later
# line outweighs an earlier one.
LOGGED = {
    "applied": r"Deploying new version of Deployment\(name='(\w+)', app='(\w+)'\)",
    "updated": r"Updating \d+ replicas of Deployment\(name='(\w+)', app='(\w+)'\)",
    "restarted": r"Stopping \d+ replicas of Deployment\(name='(\w+)', app='(\w+)'\) with outdated versions",
}
BUILT = r"Importing and building app '(\w+)'"
EFFECTS = {
    Consequence.IN_PLACE: "updated",
    Consequence.ROLLING: "restarted",
    Consequence.REBUILT: "rebuilt",
}


class Service:
    """The service, its document, and its running replicas."""

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.folder = folder
        (folder / "shop.py").write_text(APPLICATION)
        self.document = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [
                application("shop", "Back", "Bundled", route_prefix="/"),
                application("other"),
            ],
        }
        for place in (f"{SHOP}/deployments/Front", f"{OTHER}/deployments/Front"):
            self.document = changed(self.document, f"{place}/autoscaling_config", SCALING)
        # Building this application anew starts no replica.
        bound = f"{OTHER}/deployments/Front/autoscaling_config/min_replicas"
        self.document = changed(self.document, bound, 0)
        # The order of deployments with equal options would not matter.
        for name, backoff_s in (("Front", 0.1), ("Back", 0.2)):
            router = f"{SHOP}/deployments/{name}/request_router_config"
            self.document = changed(self.document, router, {"initial_backoff_s": backoff_s})
        self.write(self.document)
        up(self.file, run_dir=self.run, timeout_s=240)

    @property
    def file(self):
        return self.folder / "cluster.yaml"

    @property
    def run(self):
        return self.folder / "run"

    def write(self, document):
        self.file.write_text(yaml.safe_dump(document))

    def differ(self, changes, *, apply=True):
        """Return what `diff` finds after these changes of the file and, with `apply`, deploys."""
        document = self.document
        for path, value in changes.items():
            document = changed(document, path, value)
        self.write(document)
        result, lines, held = diff(self.file, self.run, None, apply, lambda line: None, yes=True)
        if apply:
            self.document = document
        else:
            self.write(self.document)
        return result, lines, held

    def ids(self):
        """Return the ids of the running replicas, by application and deployment."""
        return {
            (app, name): set(deployment.ids)
            for app, found in status(self.run).applications.items()
            for name, deployment in found.deployments.items()
        }

    def controller_log(self):
        """Return what Serve's controller has logged so far."""
        (path,) = RunFolder(self.run).replica_logs.glob("controller_[0-9]*.log")
        return path.read_text()

    def effects(self, seen, deployments, expected):
        """Return what Serve did since `seen` characters of its log, once that has all expected."""
        deadline = time.monotonic() + 10
        effects = {}
        while not effects.items() >= expected.items() and time.monotonic() < deadline:
            log = self.controller_log()[seen:]
            for effect, line in LOGGED.items():
                effects |= {(app, name): effect for name, app in re.findall(line, log)}
            built = re.findall(BUILT, log)
            effects |= {one: "rebuilt" for one in deployments if one[0] in built}
            time.sleep(0.05)
        return effects

    def answer(self, route):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{route}", timeout=5) as response:
            return json.loads(response.read())


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        # A process that names a policy in its file must be able to import it.
        patch.syspath_prepend(str(folder))
        try:
            yield Service(folder)
        finally:
            down(folder / "run")


def changed(document, path, value):
    """Return the document with another value at a path, or the named deployment as the last one."""
    steps = tuple(path.split("/"))
    if steps[2:] == ("deployments",):
        deployments = sorted(get(document, steps), key=lambda deployment: deployment["name"] == value)
        return replaced(document, steps, deployments)
    return replaced(document, steps, value)


@dataclass
class Deploy:
    """One deploy: the paths that it changed, the difference, and what Serve did."""

    paths: list[str]
    result: dict[str, Any]
    effects: dict[tuple[str, str], str]
    before: dict[tuple[str, str], set[str]]
    after: dict[tuple[str, str], set[str]]

    def found(self, path):
        """Return the change that `diff` reported of a path, above or below it."""
        steps = [re.sub(r"\W+", "/", change["path"]).strip("/") for change in self.result["changes"]]
        (change,) = (
            change
            for change, step in zip(self.result["changes"], steps, strict=True)
            if f"{path}/".startswith(f"{step}/") or f"{step}/".startswith(f"{path}/")
        )
        return change


def predicted(result):
    """Return the effects that `diff` predicts, by application and deployment."""
    by_deployment = {
        (app, name): EFFECTS.get(Consequence[effect.upper()])
        for app, by_name in result["deployments"].items()
        for name, effect in by_name.items()
    }
    return {name: effect for name, effect in by_deployment.items() if effect}


@pytest.fixture(scope="module")
def deploys(service):
    """Make all changes of the table; return the deploys."""
    found = []
    for changes in rounds():
        before, seen = service.ids(), len(service.controller_log())
        result, _, held = service.differ(changes)
        assert (result["applied"], held) == (True, True)
        effects = service.effects(seen, before, predicted(result))
        found.append(Deploy(list(changes), result, effects, before, service.ids()))
    return found


def field_of(path, value):
    """Return the field of the table whose row covers a change of a path."""
    level = level_of(tuple(path.split("/")))
    if value == "auto":
        return (*level[:-1], f"{level[-1]}=auto")
    return next(level[:depth] for depth in range(len(level), 0, -1) if level[:depth] in FIELDS)


def rounds():
    """Return the changes of each deploy, with their full paths."""
    lists = [
        [{f"{place}/{field}".strip("/"): value for field, value in changes.items()} for changes in steps]
        for place, steps in CHANGES.items()
    ]
    return [dict(ChainMap(*step)) for step in zip_longest(*lists, fillvalue={})]


EXAMPLES: dict[tuple[str, ...], list[str]] = {}
for step in rounds():
    for path, value in step.items():
        if path == FOURTH:
            continue
        EXAMPLES.setdefault(field_of(path, value), []).append(path)
IN_PLACE = [field for field, consequence in FIELDS.items() if consequence < Consequence.RESTART]


@proof
@pytest.mark.parametrize("field", IN_PLACE, ids=".".join)
def test_serve_does_what_the_row_says(deploys, field):
    made = [deploy for deploy in deploys if set(deploy.paths) & set(EXAMPLES[field])]
    assert len(made) == len(EXAMPLES[field])
    for number, (deploy, path) in enumerate(zip(made, EXAMPLES[field], strict=True)):
        change = deploy.found(path)
        is_ignored = field[-1] in IGNORED_ALONE and number > 0 and "target_capacity" not in deploy.paths
        expected = Consequence.NOTHING if is_ignored else FIELDS[field]
        assert change["consequence"] == expected.name.lower()
        touched = {tuple(name.split("/")) for name in change["touched"]}
        effect = EFFECTS.get(expected)
        assert {name for name in touched if deploy.effects.get(name) == effect} == touched
        if is_ignored:
            steps = path.split("/")
            assert (steps[1], steps[3]) not in deploy.effects


@proof
def test_nothing_else_is_reconfigured_or_restarted(deploys):
    for deploy in deploys:
        observed = {name: effect for name, effect in deploy.effects.items() if effect != "applied"}
        assert observed == predicted(deploy.result)
        for name, ids in deploy.before.items():
            kept = ids & deploy.after.get(name, ids)
            assert kept == (set() if observed.get(name) in ("restarted", "rebuilt") else ids), name


def test_each_row_has_an_example():
    restarts = {field_of(path, value) for path, value in RESTARTS.items()}
    assert set(EXAMPLES) | restarts | {("folder",)} == set(FIELDS)


@proof
def test_the_running_replicas_have_the_settings_of_the_file(service, deploys):
    assert service.answer("/other") == {"word": "four", "label": "x", "knobs": [1]}
    assert service.answer("/another") == {"word": "one", "label": None, "knobs": [1, 2, 1]}


@proof
def test_an_application_comes_and_goes(service, deploys):
    came, went = (deploy for deploy in deploys if FOURTH in deploy.paths)
    assert (came.found(FOURTH)["consequence"], went.found(FOURTH)["consequence"]) == ("added", "deleted")
    assert ("fourth", "Front") in came.after.keys() - came.before.keys()
    assert {app for app, _ in went.after} == set(status(service.run).applications) == {"shop", "other"}


@proof
def test_settings_that_serve_reads_at_its_start_are_refused_in_place(service):
    before, deployed, log = (
        service.ids(),
        RunFolder(service.run).service().document,
        service.controller_log(),
    )
    document = service.document
    result, lines, held = service.differ({**RESTARTS, f"{SHOP}/args/word": "five"})
    service.document = document
    service.write(document)
    assert (result["consequence"], result["applied"], held) == ("restart", False, False)
    assert [change["consequence"] for change in result["changes"]].count("restart") == len(RESTARTS)
    assert lines[-1].startswith("refused: Serve reads this setting only at its start")
    assert (service.ids(), RunFolder(service.run).service().document) == (before, deployed)
    assert not re.search(LOGGED["applied"], service.controller_log()[len(log) :])
