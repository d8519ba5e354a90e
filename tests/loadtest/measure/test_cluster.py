"""Tests of the counts of replicas and nodes from a run folder."""

from __future__ import annotations

import json

from loadtest.errors import LoadtestError
from loadtest.measure.cluster import find_cluster, look_at_folder
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


def write(folder, service):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "service.json").write_text(json.dumps(service))


def test_a_run_folder_tells_running_replicas_and_living_nodes(tmp_path):
    write(tmp_path, SERVICE)
    assert look_at_folder(tmp_path) == ({"Scorer": 2, "Ingest": 1}, 1)


def test_a_service_that_tells_no_nodes_has_none_counted(tmp_path):
    without = {key: value for key, value in SERVICE.items() if key != "nodes"}
    write(tmp_path, without)
    assert look_at_folder(tmp_path)[1] is None


def test_only_the_service_under_load_is_watched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_cluster("http://127.0.0.1:8000") is None
    write(tmp_path / "var" / "run", SERVICE)
    assert find_cluster("http://127.0.0.1:8000/") is not None
    assert find_cluster("http://127.0.0.1:9000") is None


def test_two_applications_do_not_share_a_column(tmp_path):
    both = {"a": SERVICE["applications"]["spaces"], "b": SERVICE["applications"]["spaces"]}
    write(tmp_path, SERVICE | {"applications": both})
    assert set(look_at_folder(tmp_path)[0]) == {"a_Scorer", "a_Ingest", "b_Scorer", "b_Ingest"}


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
