"""Service on a full machine: the threshold of Ray's memory monitor is below the memory in use."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from loadtest.targets.running import title
from loadtest.targets.services import free_port
from serve.operate.host.run_folder import RunFolder
from serve.operate.host.state import status
from serve.operate.run.local_cluster import down, up
from tests.support.request_loop import asking

SLEEPER = Path(__file__).parents[3] / "support" / "sleeper"
# Ray's monitor checks four times a second, and kills one process each time.
SECONDS = 5.0


@pytest.fixture
def full_machine(monkeypatch):
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.delenv("RAY_memory_monitor_refresh_ms", raising=False)


def sleeper(folder):
    shutil.copy(SLEEPER / "sleeper.py", folder)
    document = yaml.safe_load((SLEEPER / "cluster.yaml").read_text())
    document["http_options"]["port"] = port = free_port()
    document["applications"][0]["deployments"][0]["autoscaling_config"]["max_replicas"] = 1
    (folder / "cluster.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder / "cluster.yaml", port


def serving(run):
    """Return controller, proxies and replicas by process id, without idle workers and HAProxy."""
    named = {process.pid: title(process) for process in RunFolder(run).processes()}
    return {
        pid: name
        for pid, name in named.items()
        if name.startswith(("ray::Serve", "ray::HAProxy", "ray::Proxy"))
    }


@pytest.mark.integration
@pytest.mark.proof
@pytest.mark.usefixtures("full_machine")
def test_a_full_machine_kills_no_process_and_fails_no_request(tmp_path):
    config, port = sleeper(tmp_path)
    run, outcomes = tmp_path / "run", Counter()
    try:
        up(config, run_dir=run, timeout_s=60.0)
        before = serving(run)
        with asking(port, 1, outcomes):
            time.sleep(SECONDS)
        assert set(outcomes) == {(200, b"ok")}, outcomes
        assert serving(run) == before
        assert status(run).state == "ready"
    finally:
        down(run)
