"""Check each row of the table of consequences on a running service."""

from __future__ import annotations

import json
import socket
import urllib.request

import pytest
import yaml

from serve.operate.diff.apply import diff
from serve.operate.diff.field import Absent, replaced
from serve.operate.host.run_folder import RunFolder
from serve.operate.host.state import status
from serve.operate.run.local_cluster import down, up

pytestmark = pytest.mark.integration
APPLICATION = """
import json, os
from ray import serve

@serve.deployment
class Back:
    def label(self):
        return os.environ.get("LABEL")

@serve.deployment
class Front:
    def __init__(self, word, back):
        self.word, self.back, self.knob = word, back, None

    def reconfigure(self, user_config):
        self.knob = user_config["knob"]

    async def __call__(self, request):
        return {"word": self.word, "knob": self.knob, "label": await self.back.label.remote()}

def build(args):
    return Front.bind(args["word"], Back.bind())

def other(args):
    return build(args)

def policy(context):
    return context.current_num_replicas, {}
"""
QUICK = {
    "graceful_shutdown_wait_loop_s": 0.05,
    "graceful_shutdown_timeout_s": 1,
    "max_surge_percent": 100,
    "ray_actor_options": {"num_cpus": 0.1},
}
SHOP = "applications/shop"
FRONT, BACK = f"{SHOP}/deployments/Front", f"{SHOP}/deployments/Back"


class Service:
    """The service, its document, and its running replicas."""

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.folder = folder
        (folder / "shop.py").write_text(APPLICATION)
        scaling = {
            "min_replicas": 1,
            "max_replicas": 2,
            "target_ongoing_requests": 2,
            "downscale_delay_s": 600,
        }
        front = QUICK | {"name": "Front", "user_config": {"knob": 1}, "autoscaling_config": scaling}
        shop = {
            "name": "shop",
            "route_prefix": "/",
            "import_path": "shop:build",
            "args": {"word": "one"},
            "deployments": [front, QUICK | {"name": "Back"}],
        }
        self.document = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [shop],
        }
        self.write(self.document)
        up(self.file, run_dir=self.run, haproxy=False)

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
            document = replaced(document, tuple(path.split("/")), value)
        self.write(document)
        result, lines, held = diff(self.file, self.run, None, apply, 60, lambda line: None)
        if apply:
            self.document = document
        else:
            self.write(self.document)
        return result, lines, held

    def ids(self):
        """Return the ids of the running replicas, by deployment."""
        deployments = status(self.run)["applications"]["shop"]["deployments"]
        return {name: set(deployment["ids"]) for name, deployment in deployments.items()}

    def answer(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as response:
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


@pytest.mark.parametrize(
    ("changes", "expected", "new"),
    [
        (
            {
                f"{FRONT}/autoscaling_config/max_replicas": 3,
                f"{FRONT}/autoscaling_config/downscale_delay_s": 300,
                f"{BACK}/max_queued_requests": 50,
                f"{BACK}/max_surge_percent": 50,
                f"{BACK}/num_replicas": 2,
            },
            "nothing",
            # One replica is added, and the running one stays.
            {"Back": 1},
        ),
        (
            {
                f"{FRONT}/user_config/knob": 2,
                f"{FRONT}/autoscaling_config/look_back_period_s": 12,
                f"{FRONT}/max_ongoing_requests": 50,
                f"{FRONT}/backpressure_config": {"status_code": 429},
                f"{BACK}/health_check_period_s": 5,
                f"{BACK}/graceful_shutdown_timeout_s": 2,
                f"{BACK}/logging_config/log_level": "DEBUG",
                "logging_config/enable_access_log": False,
            },
            "in_place",
            {},
        ),
        ({f"{FRONT}/ray_actor_options/num_cpus": 0.2}, "rolling", {"Front": 1}),
        ({f"{SHOP}/route_prefix": "/shop"}, "in_place", {}),
        ({f"{SHOP}/route_prefix": "/"}, "in_place", {}),
        ({f"{FRONT}/max_replicas_per_node": 8}, "rolling", {"Front": 1}),
        # Ray ignores this change.
        ({f"{FRONT}/max_replicas_per_node": 9}, "nothing", {}),
        ({f"{BACK}/num_replicas": Absent()}, "nothing", {}),
        ({f"{BACK}/autoscaling_config": {"max_replicas": 2}}, "rebuilt", {"Front": 1, "Back": 1}),
        ({f"{SHOP}/args/word": "two"}, "rebuilt", {"Front": 1, "Back": 1}),
        ({f"{SHOP}/import_path": "shop:other"}, "rebuilt", {"Front": 1, "Back": 1}),
        (
            {f"{FRONT}/autoscaling_config/policy": {"policy_function": "shop:policy"}},
            "rebuilt",
            {"Front": 1, "Back": 1},
        ),
        ({f"{SHOP}/runtime_env": {"env_vars": {"LABEL": "x"}}}, "rebuilt", {"Front": 1, "Back": 1}),
        ({f"{FRONT}/autoscaling_config/initial_replicas": 2}, "nothing", {"Front": 1}),
    ],
    ids=lambda value: (
        "+".join(path.rpartition("/")[2] for path in value) if isinstance(value, dict) else str(value)
    ),
)
def test_replicas_do_what_the_difference_says(service, changes, expected, new):
    before = service.ids()
    result, _, held = service.differ(changes)
    after = service.ids()
    assert (result["consequence"], result["applied"], held) == (expected, True, True)
    assert {change["consequence"] for change in result["changes"]} == {expected}
    started = {name: len(after[name] - before[name]) for name in after if after[name] - before[name]}
    assert started == new
    if expected != "nothing":
        kept = {name for name in after if after[name] & before[name]}
        assert kept == set(after) - set(new)
    assert service.differ({})[2]


def test_the_running_replicas_have_the_settings_of_the_file(service):
    assert service.answer() == {"word": "two", "knob": 2, "label": "x"}


def test_an_application_comes_and_goes_and_the_other_is_not_touched(service):
    other = {
        "name": "other",
        "route_prefix": "/other",
        "import_path": "shop:build",
        "args": {"word": "three"},
    }
    other["deployments"] = [QUICK | {"name": "Front", "user_config": {"knob": 3}}, QUICK | {"name": "Back"}]
    before = service.ids()
    assert service.differ({"applications/other": other})[0]["consequence"] == "added"
    assert set(status(service.run)["applications"]) == {"shop", "other"}
    assert service.differ({"applications/other": Absent()})[0]["consequence"] == "deleted"
    assert set(status(service.run)["applications"]) == {"shop"}
    assert service.ids() == before


def test_a_change_that_needs_a_restart_of_serve_is_refused_in_place(service):
    before, deployed = service.ids(), RunFolder.of(service.run).deployed()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    document = service.document
    result, lines, held = service.differ({"http_options/port": port, f"{FRONT}/user_config/knob": 4})
    service.document = document
    service.write(document)
    assert (result["consequence"], result["applied"], held) == ("restart", False, False)
    assert lines[-1].startswith("refused: Serve reads this setting only at its start")
    assert (service.ids(), RunFolder.of(service.run).deployed()) == (before, deployed)
    for path, value in (("proxy_location", "EveryNode"), ("grpc_options/port", 9001)):
        assert service.differ({path: value}, apply=False)[0]["consequence"] == "restart"


def test_a_failed_deploy_reports_the_reason_and_leaves_the_service(service):
    from serve.contract.errors import TabrankError

    document = service.document
    with pytest.raises(TabrankError, match="no_such"):
        service.differ({f"{SHOP}/import_path": "shop:no_such"})
    service.document = document
    service.write(document)
    result, lines, _ = service.differ({}, apply=False)
    assert (result["consequence"], "no_such" in result["error"]) == ("none", True)
    assert "the last deploy failed" in lines[-1]
    # Deploying the unchanged file brings the service back.
    assert service.differ({})[0]["applied"]
    assert service.differ({}, apply=False)[0]["error"] == ""
    assert service.answer()["word"] == "two"
