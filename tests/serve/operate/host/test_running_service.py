"""Service at a dashboard's address; the dashboard is a small fake."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve.config.pools import NodePool
from serve.config.reader import Config
from serve.contract.errors import TabrankError
from serve.operate.diff.apply import diff, popular
from serve.operate.diff.consequence import Consequence
from serve.operate.diff.meaning import difference
from serve.operate.host.dashboard import nodes
from serve.operate.host.field import text
from serve.operate.host.kill_switch import switched
from serve.operate.host.running_service import RemoteService, find
from serve.operate.host.serve_details import cause
from serve.operate.host.service_state import Deploying, NodeState, ServiceChange

URL = "http://127.0.0.1:8265"
APP = {
    "name": "spaces",
    "route_prefix": "/",
    "import_path": "serve.app:build",
    "args": {"surface": "spaces"},
    "deployments": [{"name": "FeatureFetch", "user_config": {"max_batches_in_flight": 2}}],
}
FILE = {
    "proxy_location": "HeadOnly",
    "http_options": {"port": 9000},
    "logging_config": {"enable_access_log": False},
    "applications": [APP],
}


class Dashboard:
    """Fake of Serve's details, as Ray reports them after a deploy; a put shows one call later."""

    def __init__(self, document=FILE, *, fails=False):
        self.put = []
        self.fails = fails
        self.status = "RUNNING"
        self.take(document)

    def take(self, document):
        apps = copy.deepcopy(document["applications"])
        for app in apps:
            app.setdefault("logging_config", document.get("logging_config"))
        self.document = {**document, "applications": apps}

    def get_serve_details(self):
        status, self.status = self.status, "DEPLOY_FAILED" if self.fails and self.put else "RUNNING"
        return {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "0.0.0.0", "port": 9000},
            "grpc_options": {"port": 9000},
            "target_capacity": None,
            "applications": {app["name"]: self.details(app, status) for app in self.document["applications"]},
        }

    def details(self, app, status):
        replicas = [{"state": "RUNNING", "replica_id": "a"}, {"state": "STARTING", "replica_id": "b"}]
        deployment = {"status": "HEALTHY", "message": "", "target_num_replicas": 2, "replicas": replicas}
        return {
            "name": app["name"],
            "status": status,
            "message": "ValueError: it cannot" if status == "DEPLOY_FAILED" else "",
            "route_prefix": "/",
            "deployed_app_config": app,
            "last_deployed_time_s": 60.0,
            "deployments": {"FeatureFetch": deployment},
            "deployment_topology": {"ingress_deployment": "FeatureFetch"},
        }

    def _do_request(self, method, path):
        nodes = {
            "result": [{"node_id": "n", "node_ip": "10.0.0.1", "state": "ALIVE", "labels": {"pool": "p"}}]
        }
        answers = {
            "/api/prometheus/sd": [{"targets": ["10.0.0.1:8080", "10.0.0.1:44217"]}],
            "/api/v0/nodes": {"data": {"result": nodes}},
        }
        return SimpleNamespace(json=lambda: answers[path.partition("?")[0]])

    def deploy_applications(self, document):
        self.put.append(document)
        self.status = "DEPLOYING"
        self.take(document)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("serve.operate.host.running_service.SETTLE_S", 0.0)
    monkeypatch.setattr("serve.operate.host.running_service.POLL_S", 0.01)


def config(document):
    return Config(Path("/srv/cluster.yaml"), document, {"workers": NodePool(8, 0, 4)}, "")


def test_the_file_that_was_deployed_does_not_differ():
    assert difference(RemoteService(URL, Dashboard()), config(FILE)).changes == ()


def test_a_changed_file_is_put_and_waited_for():
    dashboard = Dashboard()
    file = {**FILE, "logging_config": {"enable_access_log": True}}
    running = RemoteService(URL, dashboard)
    found = difference(running, config(file))
    assert [(text(change.path), change.consequence) for change in found.changes] == [
        ("applications[spaces].logging_config.enable_access_log", Consequence.IN_PLACE)
    ]
    running.deploy(config(file), lambda line: None)
    assert dashboard.put == [file]
    assert difference(RemoteService(URL, dashboard), config(file)).changes == ()


def test_a_deploy_that_fails_says_why():
    with pytest.raises(TabrankError, match="'spaces' cannot be deployed: ValueError: it cannot"):
        RemoteService(URL, Dashboard(fails=True)).deploy(config(FILE), lambda line: None)


def test_another_port_needs_a_restart():
    file = {**FILE, "http_options": {"port": 9001}}
    assert difference(RemoteService(URL, Dashboard()), config(file)).worst == Consequence.RESTART


def test_the_kill_switch_of_a_cluster_is_set_by_putting_its_document():
    dashboard = Dashboard()
    running = RemoteService(URL, dashboard)
    running.deploy(running.config(switched(running.document, True)), lambda line: None)
    document = RemoteService(URL, dashboard).document
    assert document == switched(document, True) != switched(document, False)
    (change,) = difference(RemoteService(URL, dashboard), config(FILE)).changes
    assert (change.path[-1], change.old) == ("kill_switch", True)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_put_beside_another_command_of_a_cluster_says_what_stands(moment):
    dashboard, other = Dashboard(), {**FILE, "logging_config": {"enable_access_log": True}}
    running = RemoteService(URL, dashboard)
    ours = running.config(switched(running.document, True))
    if moment == "before":
        dashboard.take(other)
    else:
        monitored = dashboard.deploy_applications
        dashboard.deploy_applications = lambda document: (monitored(document), dashboard.take(other))
    with pytest.raises(TabrankError, match=rf"^{URL}: another command deployed first; what stands: deployed"):
        running.deploy(ours, lambda line: None)
    assert len(dashboard.put) == (moment == "after")


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("http_options: {port: 9001}\napplications: [{name: shop, import_path: 'json:loads'}]\n")
    return path


def test_a_deploy_under_way_and_the_remedy_of_a_refusal_are_reported(written, monkeypatch):
    running = RemoteService(URL, Dashboard())
    running.state.deploying = Deploying("/srv/big.yaml", "2026-01-31T12:00:00+00:00")
    monkeypatch.setattr("serve.operate.diff.apply.find", lambda run, address: running)
    result, lines, held = diff(written, None, URL, True, lambda line: None)
    assert (result["under_way"], held) == (
        {"config": "/srv/big.yaml", "since": "2026-01-31T12:00:00+00:00"},
        False,
    )
    assert lines[-2].startswith(
        "a deploy of /srv/big.yaml has been under way since 2026-01-31T12:00:00+00:00; "
    )
    assert lines[-1].endswith(f"serve deploy --address {URL} {written}")


def test_the_error_that_nothing_runs_comes_before_any_warning(written, tmp_path):
    messages: list[str] = []
    with pytest.raises(TabrankError, match="nothing runs here"):
        diff(written, tmp_path / "run", None, False, messages.append)
    assert messages == []


def test_an_interrupted_switch_says_that_it_may_be_on(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    running = RemoteService(URL, Dashboard())
    monkeypatch.setattr(running, "deploy", interrupted)
    monkeypatch.setattr("serve.operate.diff.apply.find", lambda run, address: running)
    messages: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        popular(None, URL, True, messages.append)
    assert messages == ["the kill switch may be on already; look with: python -m serve status"]


def test_the_screen_gets_the_content_of_a_dashboard():
    service = RemoteService(URL, Dashboard()).state
    assert (service.state, service.url) == ("ready", "http://127.0.0.1:9000")
    assert service.nodes == [NodeState(True, "p", "n", "http://10.0.0.1:8080/metrics")]
    assert service.changes == [ServiceChange("1970-01-01T00:01:00+00:00", "deployed spaces")]
    app = service.applications["spaces"].deployments["FeatureFetch"]
    assert (app.target, app.replicas, app.ids) == (2, {"RUNNING": 1, "STARTING": 1}, ["a", "b"])


def test_a_dashboard_that_reports_no_nodes_has_none():
    assert nodes(object()) == []


def test_where_nothing_runs_the_remedy_is_named(tmp_path):
    with pytest.raises(TabrankError, match="nothing runs here; start it with: python -m serve up"):
        find(tmp_path / "run", None)
    with pytest.raises(TabrankError, match="no application runs there"):
        RemoteService(URL, Dashboard({**FILE, "applications": []}))
    with pytest.raises(TabrankError, match=r"--address localhost:8265: name the dashboard, such as http://"):
        find(None, "localhost:8265")


TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:spaces:Scorer.initialize() (pid=1, ip=127.0.0.1)
  File "/srv/serve/app.py", line 1, in __init__
    raise Invalid(problems)
          ^^^^^^^^^^^^^^^^^
"""


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([f"{TRACEBACK}serve.contract.errors.TabrankError: no store"], "no store"),
        (
            [f"{TRACEBACK}serve.contract.typed_reader.Invalid: args:\n  days: expected a number\nand more\n"],
            "args:\n  days: expected a number\nand more",
        ),
        ([f"{TRACEBACK}ValueError: it cannot", "Updating 1 replica."], "ValueError: it cannot"),
        (["", "it has no room", " "], "it has no room"),
        ([""], "Serve gives no reason"),
    ],
)
def test_the_cause_is_the_whole_message_without_traceback_and_class_of_ours(messages, expected):
    assert cause(messages) == expected
