"""Tests of a head that dies and restarts, on two nodes in the environment of `serve render`."""

import shutil
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import yaml
from asking import asking, wait_for

from loadtest.errors import LoadtestError
from loadtest.measure.polling import within
from loadtest.scenarios.chaos.head import Recovered
from loadtest.targets.processes import marked
from loadtest.targets.services import free_port
from loadtest.targets.two_nodes import two_nodes

SLEEPER = Path(__file__).parents[3] / "support" / "sleeper"
DEAD_S = 3.0


def sleeper(folder):
    shutil.copy(SLEEPER / "sleeper.py", folder)
    document = yaml.safe_load((SLEEPER / "cluster.yaml").read_text())
    document["proxy_location"] = "EveryNode"
    document["http_options"]["port"] = free_port()
    (folder / "cluster.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder / "cluster.yaml", document


@pytest.mark.integration
@pytest.mark.proof
def test_a_worker_answers_without_its_head_and_a_new_head_takes_over(tmp_path):
    config, document = sleeper(tmp_path)
    outcomes = Counter()
    with two_nodes(config) as nodes:
        before = nodes.identities()
        port = urlsplit(nodes.url).port
        assert wait_for(lambda: within(1.0, lambda: answers(port)) is not None, 20.0)
        with asking(port, 2, outcomes):
            nodes.kill_head()
            assert nodes.cluster.applications() == {}
            killed = outcomes.total()
            time.sleep(DEAD_S)
            assert outcomes.total() > killed + 10
            nodes.start_head()
            assert wait_for(lambda: any(nodes.identities().values()), 30.0)
            assert nodes.identities() == before
            document["applications"][0]["deployments"][0]["autoscaling_config"]["min_replicas"] = 2
            nodes.deploy(document)
            assert wait_for(lambda: nodes.cluster.rest.replicas() == {"Sleeper": 2}, 30.0)
            assert set(before["Sleeper"]) < set(nodes.identities()["Sleeper"])
        assert set(outcomes) == {(200, b"ok")}, outcomes
        markers = [nodes.marker(node) for node in nodes.environments]
    assert not [process for marker in markers for process in marked(marker)]
    assert not [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(nodes.cluster.folder) in " ".join(p.info["cmdline"] or [])
    ]


def answers(port):
    outcomes = Counter()
    with asking(port, 1, outcomes):
        time.sleep(0.2)
    return set(outcomes) == {(200, b"ok")}


def test_a_head_that_governs_what_ran_before_has_nothing_to_answer_for():
    assert list(Recovered(8.0, 0, in_place_s=0.1, scaled_s=2.0).reasons()) == []


@pytest.mark.parametrize(
    ("seen", "messages"),
    [
        (Recovered(None, 0), ["the head did not recover"]),
        (Recovered(8.0, 2, 0.1, 2.0), ["2 replicas were replaced"]),
        (Recovered(8.0, 0, None, None), ["a live setting did not reach", "did not scale"]),
    ],
)
def test_what_did_not_come_back_with_the_head_is_told(seen, messages):
    reasons = list(seen.reasons())
    assert len(reasons) == len(messages)
    assert all(part in reason for part, reason in zip(messages, reasons, strict=True))


def test_what_cannot_be_told_does_not_hold():
    def fails():
        raise LoadtestError("nobody there")

    assert within(0.15, fails) is None
    assert within(0.15, lambda: True) == 0.0
