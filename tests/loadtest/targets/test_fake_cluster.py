"""Tests of nodes that Ray's autoscaler adds and removes, with the file of `serve render`."""

import shutil
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml
from asking import asking, wait_for

from loadtest.targets.fake_cluster import fake_cluster
from loadtest.targets.processes import MARKER
from loadtest.targets.services import free_port

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
