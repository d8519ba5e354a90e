"""Tests of the counts of replicas and nodes from a run folder and a dashboard."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from loadtest.errors import LoadtestError
from loadtest.measure.cluster import find_cluster
from loadtest.measure.polling import repeated, within

SERVICE = {
    "url": "http://127.0.0.1:8000",
    "applications": {
        "spaces": {
            "status": "RUNNING",
            "deployments": {
                "Scorer": {"status": "UPSCALING", "replicas": {"RUNNING": 2, "STARTING": 1}},
                "Ingest": {"status": "HEALTHY", "replicas": {"RUNNING": 1}},
            },
        }
    },
    "nodes": [
        {"id": "a", "pool": "head", "alive": True},
        {"id": "b", "pool": "workers", "alive": False},
    ],
}
DASHBOARD = {
    "/api/serve/applications/": {
        "applications": {
            "spaces": {"deployments": {"Scorer": {"replicas": [{"state": "RUNNING"}, {"state": "STARTING"}]}}}
        }
    },
    "/api/v0/nodes": {
        "data": {"result": {"result": [{"state": "ALIVE"}, {"state": "DEAD"}, {"state": "ALIVE"}]}}
    },
}


def write(folder, service):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "service.json").write_text(json.dumps(service))
    return str(folder)


@pytest.fixture
def dashboard():
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.tokens.append(self.headers.get("Authorization"))
            body = json.dumps(DASHBOARD[self.path.partition("?")[0]]).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    server.tokens = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_run_folder_tells_running_replicas_and_living_nodes(tmp_path):
    look = find_cluster(write(tmp_path / "run", SERVICE), "http://elsewhere")
    assert look() == ({"Scorer": 2, "Ingest": 1}, 1)


def test_a_service_that_tells_no_nodes_has_none_counted(tmp_path):
    without = {key: value for key, value in SERVICE.items() if key != "nodes"}
    assert find_cluster(write(tmp_path, without), "http://elsewhere")()[1] is None


def test_a_dashboard_tells_the_same_and_gets_the_token(dashboard, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    look = find_cluster(f"http://127.0.0.1:{dashboard.server_port}", "http://elsewhere")
    assert look() == ({"Scorer": 1}, 2)
    assert set(dashboard.tokens) == {"Bearer secret"}


def test_without_a_name_only_the_service_under_load_is_watched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_cluster(None, "http://127.0.0.1:8000") is None
    write(tmp_path / "var" / "run", SERVICE)
    assert find_cluster(None, "http://127.0.0.1:8000/") is not None
    assert find_cluster(None, "http://127.0.0.1:9000") is None


@pytest.mark.parametrize("named", ["nowhere", "http://127.0.0.1:9"])
def test_a_cluster_that_is_not_there_is_refused_with_what_to_name(named):
    with pytest.raises(LoadtestError, match=f"--cluster {named}: found no "):
        find_cluster(named, "http://127.0.0.1:8000")


def test_two_applications_do_not_share_a_column(tmp_path):
    both = {"a": SERVICE["applications"]["spaces"], "b": SERVICE["applications"]["spaces"]}
    look = find_cluster(write(tmp_path, SERVICE | {"applications": both}), "http://elsewhere")
    assert set(look()[0]) == {"a_Scorer", "a_Ingest", "b_Scorer", "b_Ingest"}


def test_looks_go_on_past_what_cannot_be_seen():
    seen = []

    def look():
        seen.append(len(seen))
        if len(seen) == 2:
            raise LoadtestError("gone")

    with repeated(look, 0.02):
        assert within(5.0, lambda: len(seen) >= 4) is not None


def test_a_condition_that_cannot_be_read_counts_as_false():
    def fails():
        raise LoadtestError("nobody there")

    assert within(0.15, fails) is None
    assert within(0.15, lambda: True) == 0.0
