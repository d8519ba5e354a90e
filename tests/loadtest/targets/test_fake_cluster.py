"""Tests of nodes that Ray's autoscaler adds and removes, with the pools of a `cluster.yaml`."""

import shutil
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml
from asking import asking, wait_for

from loadtest.targets.fake_cluster import autoscaling_document, fake_cluster
from loadtest.targets.processes import MARKER
from loadtest.targets.services import free_port
from serve.config.reader import read

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "tests" / "support" / "sleeper"
SHIPPED = ROOT / "cluster.yaml"
UP_S, DOWN_S = 25.0, 25.0


def pools(cluster):
    return sorted(node["labels"]["pool"] for node in cluster.rest.nodes())


def with_port(source, folder, port):
    document = yaml.safe_load(source.read_text())
    document["http_options"]["port"] = port
    (folder / source.name).write_text(yaml.safe_dump(document, sort_keys=False))
    return folder / source.name


def test_each_pool_is_a_kind_of_node_with_its_label_and_bounds():
    document = autoscaling_document(read(FOLDER / "cluster.yaml"), 6379, 30.0)
    kinds = {
        kind["labels"]["pool"]: (kind["resources"]["CPU"], kind["min_workers"], kind["max_workers"])
        for kind in document["available_node_types"].values()
    }
    assert kinds == {"head": (1, 0, 0), "workers": (1, 0, 2)}
    assert (document["max_workers"], document["idle_timeout_minutes"]) == (2, 0.5)
    assert document["provider"]["gcs_address"] == "127.0.0.1:6379"


@pytest.mark.integration
@pytest.mark.proof
def test_a_node_is_added_and_removed_with_the_load_and_no_request_fails(tmp_path):
    port = free_port()
    shutil.copy(FOLDER / "sleeper.py", tmp_path)
    config = with_port(FOLDER / "cluster.yaml", tmp_path, port)
    outcomes = Counter()
    with fake_cluster(config, idle_s=1.0) as cluster:
        assert pools(cluster) == ["head"]
        with asking(port, 1, outcomes):
            with asking(port, 10, outcomes):
                added = wait_for(lambda: cluster.rest.replicas() == {"Sleeper": 2}, UP_S)
                assert added, (pools(cluster), cluster.rest.replicas())
                assert pools(cluster) == ["head", "workers"]
            assert wait_for(lambda: pools(cluster) == ["head"], DOWN_S), cluster.rest.replicas()
        assert set(outcomes) == {(200, b"ok")}, outcomes
        assert outcomes.total() > 100
        marker = cluster.environment[MARKER]

        # The shipped file, deployed by the same command.
        cluster.deploy(with_port(SHIPPED, tmp_path / "..", port))
        cluster.wait_until_running()
        assert set(cluster.rest.replicas()) == {"FeatureFetch", "Scorer", "Ingest"}
    assert not [p for p in psutil.process_iter() if carries(p, marker)]


def carries(process, marker):
    try:
        return process.environ().get(MARKER) == marker and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False
