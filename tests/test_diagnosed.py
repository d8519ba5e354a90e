"""Faults of a running service: `/readyz`, `status`, `up` and `check` name them alike."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import httpx
import pyarrow.compute as pc
import pytest
import yaml

from serve.config.reader import read
from serve.contract.errors import TabrankError
from serve.log.writer import write_log
from serve.model.artifact import CURRENT, FILES, load, save
from serve.operate.host.run_folder import RunFolder
from serve.operate.host.running_service import LocalService
from serve.operate.run.local_cluster import up
from serve.operate.status.scrape import PageHistory
from serve.operate.status.vitals import look
from tests.support.small_surface import TOML, tables
from tests.support.stub_artifact import MODEL, publish_stub

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[1]
WITHIN_S = 10.0
# Folder of a snapshot that covers more records than the log has.
AHEAD = f"{500_000:020d}"
OF_ANOTHER_STATE, ANOTHER = "20260102T000000Z-000b", "20260103T000000Z-000c"


def run(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "serve", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Start one service for all tests: its folder, and what `load` and `up` printed.

    The folder has the small surface with a log of a year ago; nothing is published in it.
    """
    home = tmp_path_factory.mktemp("diagnosed")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    document = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    document["http_options"]["port"] = port
    application = document["applications"][0]
    application |= {"name": "tiny"}
    application["args"] = {"surface": "tiny.toml", "store": "lmdb:store", "models": "models", "log": "log"}
    application["deployments"][0]["user_config"]["experiment"]["name"] = "ours"
    (home / "tiny.toml").write_text(TOML)
    (home / "cluster.yaml").write_text(yaml.safe_dump(document))
    # 399 days and 23 hours ago, so that the days stay the same while the service starts.
    log, shift_ms = tables(), int(time.time() * 1e3) - 400 * 86_400_000 + 3_600_000
    for name, column in (("candidates", "ts_ms"), ("exposures", "ts_ms"), ("events", "ts_ms")):
        at = log[name].column_names.index(column)
        log[name] = log[name].set_column(at, column, pc.add(log[name][column], shift_ms))
    write_log(home / "log", log)
    publish_stub(home / "made", TOML)
    made = load(home / "made" / MODEL)
    contents = {name: made.read(name) for name in FILES}
    for version in (OF_ANOTHER_STATE, ANOTHER):
        manifest = {"version": version, "surface": "tiny", "state_fingerprint": "0" * 64}
        save(home / "models" / version, contents, manifest)
    loaded = run("load", "--surface", "tiny.toml", "--log", "log", "--store", "lmdb:store", cwd=home)
    try:
        yield home, loaded.stderr, run("up", "--timeout", "180", cwd=home).stderr
    finally:
        run("down", cwd=home)


@pytest.fixture
def home(started):
    """Yield the service's folder; afterwards bring the service back to what it was at its start."""
    home, *_ = started
    file = home / "cluster.yaml"
    whole = file.read_text()
    yield home
    (home / "models" / CURRENT).unlink(missing_ok=True)
    shutil.rmtree(home / "log/snapshots" / AHEAD, ignore_errors=True)
    file.write_text(whole)
    up(file, timeout_s=180, yes=True)


def named_everywhere(home: Path, name: str, *, in_file: bool = True) -> str:
    """Return the text of a diagnosis once `/readyz`, `status`, `up` and `check` all have it."""
    url = json.loads((home / "var/run/service.json").read_text())["url"]
    until = time.monotonic() + WITHIN_S
    while True:
        answer = httpx.get(f"{url}/readyz", timeout=5).json()
        found = [one for one in answer["diagnoses"] if one["name"] == name]
        if found or time.monotonic() > until:
            break
        time.sleep(0.1)
    assert found, answer
    text = f"{found[0]['cause']} {found[0]['remedy']}"
    state = look(home / "var/run", None, PageHistory(1.0))
    assert f"tiny: {text}" in state.degraded
    assert name in [one.name for one in state.causes]
    assert state.health.state == "degraded"
    again = up(home / "cluster.yaml", timeout_s=30)
    assert again["action"] == "none"
    assert f"tiny: {text}" in again["degraded"]
    assert time.monotonic() < until
    details = [warning.detail for warning in read(home / "cluster.yaml").warnings]
    assert (text in details) == in_file
    return text


def deploy(home: Path) -> None:
    """Deploy the file in place as `diff --apply` does, whatever it means for callers."""
    LocalService(RunFolder(home / "var/run")).deploy(read(home / "cluster.yaml"), print)


class Callers(Thread):
    """Callers that ask `/v1/rank` without a key, ten times a second, as before any change."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.status, self.ended = url, 0, Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.url) as client:
            while not self.ended.wait(0.1):
                body = {"viewer": "ann", "candidates": ["a", "b"]}
                self.status = client.post("/v1/rank", json=body).status_code


def leading(home: Path, names: set[str]) -> dict:
    """Return the state of `status` once its first cause is one of these, and it exits with 1."""
    until = time.monotonic() + 60
    while True:
        command = [sys.executable, "-m", "serve", "status", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=home, check=False)
        found = json.loads(done.stdout)
        if (found["causes"] and found["causes"][0]["name"] in names) or time.monotonic() > until:
            break
    assert done.returncode == 1
    assert found["causes"][0]["name"] in names, found["causes"]
    assert found["health"]["line"] == found["causes"][0]["text"]
    return found


@contextmanager
def away(path: Path):
    path.rename(path.with_name("away"))
    yield
    path.with_name("away").rename(path)


def test_faults_of_a_running_service_are_named_everywhere_within_ten_seconds(home, started):
    _, loaded, told = started
    assert "Most records are at least 399 days old, which empties audience (max_stay 4h)" in loaded
    # The old log is announced before the first ranking.
    old = named_everywhere(home, "old_records")
    assert f"warning: {old}\n" in loaded
    assert f"warning: tiny: {old}\n" in told
    assert "These arms have no model" in named_everywhere(home, "no_model")
    (home / "models" / CURRENT).write_text(f"{OF_ANOTHER_STATE}\n")
    assert "trained on the state 000000000000" in named_everywhere(home, "model_of_another_state")
    with away(home / "store"):
        assert "no store at lmdb:store" in named_everywhere(home, "no_store")
    snapshot = home / "log/snapshots" / AHEAD
    snapshot.mkdir(parents=True)
    (snapshot / "meta.json").write_text("{}")
    assert "up to number 500000" in named_everywhere(home, "log_ahead")
    # The file names a version that is published and that replicas refuse.
    file = home / "cluster.yaml"
    whole = file.read_text()
    file.write_text(whole.replace("scorer: current", f"scorer: {ANOTHER}"))
    assert up(file, timeout_s=60)["action"] == "deployed"
    named_everywhere(home, "settings_refused", in_file=False)
    file.write_text(whole)
    assert up(file, timeout_s=60)["action"] == "deployed"
    run("popular", cwd=home)
    url = json.loads((home / "var/run/service.json").read_text())["url"]
    assert "kill_switch" in [one["name"] for one in httpx.get(f"{url}/readyz").json()["diagnoses"]]
    state = look(home / "var/run", None, PageHistory(1.0))
    assert (state.kill_switch, state.changes[0].what) == (["tiny"], "kill switch on for tiny")


def breaks(home):
    """Return the names of what the last deploys broke for callers."""
    return {one.name for one in look(home / "var/run", None, PageHistory(1.0)).breaks}


def test_a_change_that_fails_callers_needs_yes_and_its_failures_are_reported(home):
    file = home / "cluster.yaml"
    document = yaml.safe_load(file.read_text())
    (application,) = document["applications"]
    keys = {"app": {"sha256": "a" * 64, "requests_per_s": 5}}
    application["deployments"][0]["user_config"]["api_keys"] = keys
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(TabrankError, match="requests without X-Api-Key get 401"):
        up(file, timeout_s=60)
    assert up(file, timeout_s=60, yes=True)["action"] == "deployed"
    assert breaks(home) == {"first_key"}
    application["route_prefix"] = "/ranking"
    file.write_text(yaml.safe_dump(document))
    refused = subprocess.run(
        [sys.executable, "-m", "serve", "diff", "--apply"],
        capture_output=True,
        text=True,
        cwd=home,
        check=False,
    )
    assert refused.returncode == 1
    assert "needs --yes: every request to / gets 404: its callers fail" in refused.stdout
    run("diff", "--apply", "--yes", cwd=home)
    assert breaks(home) == {"route_changed"}


def test_a_ranking_for_no_replica_ends_with_503_in_time_and_starts_one(home):
    file = home / "cluster.yaml"
    document = yaml.safe_load(file.read_text())
    quick = {"min_replicas": 0, "upscale_delay_s": 0, "downscale_delay_s": 5, "look_back_period_s": 1}
    document["applications"][0]["deployments"][0]["autoscaling_config"] |= quick
    file.write_text(yaml.safe_dump(document))
    assert up(file, timeout_s=60, yes=True)["action"] == "deployed"
    service = home / "var/run/service.json"
    url = json.loads(service.read_text())["url"]

    def num_running() -> int:
        found = json.loads(service.read_text())["applications"]["tiny"]["deployments"]["FeatureFetch"]
        return found["replicas"].get("RUNNING", 0)

    until = time.monotonic() + 60
    while num_running() and time.monotonic() < until:
        time.sleep(0.5)
    # HAProxy and the replica that stops need a moment.
    time.sleep(4)
    answers, refused_s, body = [], [], {"viewer": "ann", "candidates": ["a", "b"]}
    while time.monotonic() < until + 30 and 200 not in answers:
        answer = httpx.post(f"{url}/v1/rank", json=body, timeout=10)
        answers.append(answer.status_code)
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1"
            refused_s.append(answer.elapsed.total_seconds())
            time.sleep(0.2)
    assert (answers[0], answers[-1], set(answers)) == (503, 200, {503, 200})
    # The deadline is 0.2 s. A machine that starts a replica meanwhile may halt during one of them.
    assert min(refused_s) < 0.2 + 0.3


def test_a_changed_route_and_a_first_key_lead_the_status_while_callers_fail(started):
    """Run last with this service, as it ends with another file."""
    home, *_ = started
    url = json.loads((home / "var/run/service.json").read_text())["url"]
    file, callers = home / "cluster.yaml", Callers(url)
    whole = file.read_text()
    callers.start()
    try:
        leading(home, {"old_records"})
        assert callers.status == 200
        file.write_text(whole.replace("route_prefix: /", "route_prefix: /ranking"))
        deploy(home)
        found = leading(home, {"route_changed"})
        assert callers.status == 404
        assert "unrouted" in [one["name"] for one in found["causes"]]
        # The route of before, so that this diagnosis goes.
        keyed = yaml.safe_load(whole)
        settings = keyed["applications"][0]["deployments"][0]["user_config"]
        settings["api_keys"] = {"web": {"sha256": "0" * 64, "requests_per_s": 100.0}}
        file.write_text(yaml.safe_dump(keyed))
        deploy(home)
        found = leading(home, {"first_key"})
        assert callers.status == 401
        assert "client_errors" in [one["name"] for one in found["causes"]]
    finally:
        callers.ended.set()
        callers.join()
