import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml

from serve.config.application import OUR_APPLICATION
from serve.contract.errors import TabrankError
from serve.operate.diff.apply import diff
from serve.operate.host.deploying import document_of
from serve.operate.host.environment import HAPROXY_PORT, METRICS_PORT
from serve.operate.host.field import parsed
from serve.operate.host.run_folder import GRACE_S, MARKER, STOP_S, SUPERVISE, RunFolder
from serve.operate.host.running_service import LocalService
from serve.operate.host.service_state import (
    ApplicationState,
    Deploying,
    DeploymentState,
    Probe,
    ServiceState,
    SupervisedState,
    Wanted,
)
from serve.operate.host.state import RunState, is_alive, status, status_code
from serve.operate.run.local_cluster import NEVER, down, up
from serve.operate.run.restarts import ENDED
from serve.operate.run.supervisor import Supervisor, reason, settled
from serve.operate.status.scrape import read_pages
from serve.operate.status.screen import screen
from serve.operate.status.vitals import answers_of, look

OURS = ApplicationState(import_path=OUR_APPLICATION)
# An application of the same shape as ours: a raw ASGI ingress in front of a scorer.
APPLICATION = """
import json, os
from ray import serve

@serve.deployment
class Scorer:
    def score(self, payload):
        return payload

@serve.deployment
@serve.ingress()
class FeatureFetch:
    def __init__(self, fail, scorer):
        if fail:
            raise RuntimeError("the store cannot be opened")
        self.scorer, self.knobs = scorer, {}

    def reconfigure(self, user_config):
        self.knobs = user_config

    def __serve_build_asgi_app__(self):
        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                while True:
                    kind = (await receive())["type"]
                    await send({"type": kind + ".complete"})
                    if kind.endswith("shutdown"):
                        return
            answer = {"pid": os.getpid(), "home": os.environ.get("TABRANK_HOME"), **self.knobs}
            body = await self.scorer.score.remote(json.dumps(answer).encode())
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})
        return app

def build(args):
    return FeatureFetch.bind(args["fail"], Scorer.bind())
"""

CONFIG = """\
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {port}}}
logging_config: {{enable_access_log: false}}
applications:
- name: tab
  route_prefix: /
  import_path: front:build
  args: {{fail: {fail}}}
  deployments:
  - name: FeatureFetch
    max_ongoing_requests: 100
    max_surge_percent: 100
    graceful_shutdown_wait_loop_s: 0.1
    ray_actor_options: {{num_cpus: 0.5}}
    user_config: {{knob: {knob}}}
  - name: Scorer
    graceful_shutdown_wait_loop_s: 0.1
    ray_actor_options: {{num_cpus: 0.5}}
"""


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, port):
    """Yield a folder with an application; its service is stopped at the end in any case."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "front.py").write_text(APPLICATION)
    yield folder
    down(folder / "run")


def service(
    folder: Path,
    port: int,
    *,
    knob: int = 1,
    fail: bool = False,
    yes: bool = False,
    messages: list[str] | None = None,
) -> dict[str, Any]:
    (folder / "cluster.yaml").write_text(CONFIG.format(port=port, knob=knob, fail=str(fail).lower()))
    progress = ([] if messages is None else messages).append
    return up(folder / "cluster.yaml", run_dir=folder / "run", yes=yes, progress=progress)


def answer(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/rank", timeout=5) as response:
        return dict(json.loads(response.read()))


def until(holds, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def titled(run, title):
    """Return the process of this title, which Ray changes for the time of a call."""
    for _ in range(100):
        for process in run.processes():
            if process.cmdline()[:1] == [title]:
                return process
        time.sleep(0.05)
    raise AssertionError(f"no process is named {title}")


def idle_process(marker: str, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "print(flush=True); input()", *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, env={**os.environ, MARKER: marker})
    # A process that has just started has no readable environment yet.
    assert process.stdout.readline() == b"\n"
    return process


def kill_supervisor(folder: Path) -> int:
    """Kill the supervisor and return its id once it has ended."""
    (supervisor,) = RunFolder(folder / "run").supervisors()
    supervisor.kill()
    supervisor.wait(10)
    return supervisor.pid


def unplaceable(document: dict[str, Any]) -> dict[str, Any]:
    (app,) = document["applications"]
    front = next(one for one in app["deployments"] if one["name"] == "FeatureFetch")
    front["ray_actor_options"] = {"num_cpus": 4_000}
    return document


def assert_nothing_is_left(folder: Path, port: int) -> None:
    run = RunFolder(folder / "run")
    assert run.processes() == []
    assert run.temp is None
    assert status(folder / "run").state == "stopped"
    socket.create_server(("127.0.0.1", port)).close()


def test_down_ends_every_process_with_the_marker_and_no_other(tmp_path):
    run = RunFolder(tmp_path)
    with (
        idle_process(marker=run.cluster_id) as orphan,
        idle_process(marker="another") as stranger,
    ):
        assert status(tmp_path).state == "dead"
        stopped = down(tmp_path)
        assert stopped["was"] == "dead"
        assert orphan.poll() is not None
        assert stranger.poll() is None
        stranger.kill()
    assert status(tmp_path) == RunState("stopped")


def test_a_failed_service_is_dead_and_its_error_is_shown(tmp_path):
    run = RunFolder(tmp_path)
    run.write(SupervisedState("failed", url="http://127.0.0.1:1", error="no room"))
    found = look(tmp_path, None)
    assert (found.state, found.supervision) == ("dead", None)
    assert "The service has ended: no room." in screen(found).plain


def test_a_deploy_that_stops_writing_its_state_is_dead_after_a_minute(tmp_path):
    run = RunFolder(tmp_path)
    run.write(SupervisedState("deploying", deploying=Deploying("a.yaml", "2026-01-31T12:00:00+00:00")))
    with idle_process(run.cluster_id, SUPERVISE) as supervisor:
        for age_s, state in ((30, "deploying"), (90, "dead")):
            at = time.time() - age_s
            os.utime(tmp_path / "service.json", (at, at))
            assert status(tmp_path).state == state
        supervisor.kill()


def test_an_answer_that_is_not_http_counts_as_none():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_rubbish():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"rubbish\r\n\r\n")

        threading.Thread(target=answer_rubbish, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert status_code(url) == 0
        assert answers_of(ServiceState(url=url, applications={"a": OURS})) == {"a": {}}
        assert read_pages([url]).values == {}
        server.shutdown(socket.SHUT_RDWR)


def test_a_dead_service_shows_no_running_replica(tmp_path):
    run = RunFolder(tmp_path)
    tab = ApplicationState(deployments={"Scorer": DeploymentState(replicas={"RUNNING": 1})})
    run.write(SupervisedState("ready", url="http://127.0.0.1:1", applications={"tab": tab}))
    found = status(tmp_path)
    assert (found.state, found.applications) == ("dead", {})


def test_down_where_nothing_runs_is_no_error(tmp_path):
    assert down(tmp_path)["was"] == "stopped"


def test_down_of_a_missing_folder_reports_it_and_creates_none(tmp_path):
    assert down(tmp_path / "run")["was"] == NEVER
    assert not (tmp_path / "run").exists()


def test_a_running_service_is_not_stopped_for_a_busy_port(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")
    run.write(
        SupervisedState("deploying", url="http://127.0.0.1:1", applications={"tab": ApplicationState()})
    )
    document = {"applications": [], "nodes": {}, "http_options": {"port": 1}}
    running = SimpleNamespace(
        state=run.service(),
        error="",
        document=document,
        base=None,
        comparable=lambda config: config.serve,
    )
    monkeypatch.setattr("serve.operate.run.local_cluster._running", lambda run: running)
    messages: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as holder, pytest.raises(TabrankError, match="is in use by"):
        service(tmp_path, holder.getsockname()[1], messages=messages)
    assert messages[-1].startswith("restarting")
    assert RunFolder(tmp_path / "run").service()


def test_a_restart_tells_the_new_supervisor_what_ran_before(tmp_path, port, monkeypatch):
    run, starts = RunFolder(tmp_path / "run"), Starts(monkeypatch, "")
    run.write(SupervisedState("ready", url=f"http://127.0.0.1:{port}"))
    document = {"applications": [{"name": "old", "import_path": "a:b", "route_prefix": "/old"}], "nodes": {}}
    running = SimpleNamespace(
        state=run.service(),
        error="",
        document=document,
        base=None,
        comparable=lambda config: {**config.serve, "nodes": {}},
    )
    monkeypatch.setattr("serve.operate.run.local_cluster._running", lambda run: running)
    (tmp_path / "cluster.yaml").write_text(CONFIG.format(port=port, knob=1, fail="false"))
    restarted = up(tmp_path / "cluster.yaml", run_dir=run.path, yes=True)
    assert (restarted["action"], starts.wanted.before) == ("started", document)
    assert starts.wanted.document["applications"][0]["name"] == "tab"
    down(run.path)


class WithoutRay(Supervisor):
    """Supervisor whose deploys only write their document, and which ends at once."""

    def _start(self):
        pass

    def _connect(self, config):
        pass

    def _deploy(self, config):
        self._save(document=document_of(config))

    def _watch(self):
        pass

    def _shut_down(self, error):
        assert error == ""


def test_a_restart_notes_what_it_broke_for_callers(tmp_path, monkeypatch):
    def document(route):
        return {"applications": [{"name": "spaces", "import_path": OUR_APPLICATION, "route_prefix": route}]}

    for name in (METRICS_PORT, HAPROXY_PORT):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("serve.operate.run.supervisor.nodes", list)
    run = RunFolder(tmp_path)
    for before, probes in (
        ({}, []),
        (document("/ranking"), []),
        (document("/"), [Probe("route_changed", "spaces", "/livez", 404)]),
    ):
        run.save_wanted(Wanted(str(tmp_path / "cluster.yaml"), document("/ranking"), before))
        assert WithoutRay(run).main()
        service = run.service()
        assert (service.state, service.document["applications"]) == (
            "ready",
            document("/ranking")["applications"],
        )
        assert [(one.what, one.probes) for one in service.changes] == [("started with cluster.yaml", probes)]


def test_a_deploy_is_done_once_no_old_replica_is_left():
    def application(**replicas):
        return {"tab": ApplicationState("RUNNING", deployments={"Front": DeploymentState(replicas=replicas)})}

    assert settled(application(RUNNING=2))
    assert not settled(application(RUNNING=2, STOPPING=1))
    deploying = ApplicationState("DEPLOYING", deployments=application(RUNNING=1)["tab"].deployments)
    assert not settled({"tab": deploying})
    assert not settled({})


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_that_ray_has_parsed_can_still_be_written():
    gang = {"name": "Front", "num_replicas": 2, "gang_scheduling_config": {"gang_size": 2}}
    document = {"applications": [{"name": "tab", "import_path": "shop:build", "deployments": [gang]}]}
    assert parsed(document).applications[0].deployments[0].name == "Front"
    assert yaml.safe_dump(document)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError(), "ValueError"),
        (ValueError("\n"), "ValueError"),
        (RuntimeError("Traceback\n  a line\nKeyError: 'x'\n"), "KeyError: 'x'"),
        (TabrankError("one line\nand another"), "one line\nand another"),
    ],
)
def test_every_failure_has_a_reason_even_without_a_message(error, expected):
    assert reason(error) == expected


def test_a_busy_port_is_refused_and_its_holder_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(TabrankError, match=rf"127\.0\.0\.1:{port} is in use by .*{os.getpid()}"):
            service(tmp_path, port)
    assert status(tmp_path / "run") == RunState("stopped")


RAY_FAILED = "The current node timed out during startup."
DEPLOY_FAILED = "application 'tab' cannot be deployed: no such module"


class Starts:
    """Fake supervisors: each start only writes the next of the outcomes, an error or nothing."""

    def __init__(self, monkeypatch, *outcomes, load=0.3):
        self._outcomes, self.num = list(outcomes), 0
        monkeypatch.setattr("serve.operate.run.local_cluster._detach", self._start)
        monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
        monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})

    def _start(self, config, run, env):
        self.wanted = run.wanted()
        error = self._outcomes[min(self.num, len(self._outcomes) - 1)]
        self.num += 1
        applications = {"tab": ApplicationState()} if error in ("", DEPLOY_FAILED) else {}
        state = "failed" if error else "ready"
        run.write(SupervisedState(state, "starting Ray", error=error, applications=applications))


def test_a_start_that_fails_in_ray_itself_is_repeated(tmp_path, port, monkeypatch):
    starts, messages = Starts(monkeypatch, RAY_FAILED, ""), []
    started = service(tmp_path, port, messages=messages)
    assert (started["action"], started["state"], starts.num) == ("started", "ready", 2)
    again = f"Ray did not start, trying again: {RAY_FAILED} (more in {tmp_path / 'run/supervisor.log'})"
    assert messages == ["starting Ray", again, "starting Ray"]
    down(tmp_path / "run")


def test_a_start_that_always_fails_ends_after_three_and_names_the_load(tmp_path, port, monkeypatch):
    starts, messages = Starts(monkeypatch, RAY_FAILED, load=25.3), []
    with pytest.raises(TabrankError, match="this machine is overloaded: load 25 on 2 cores, start it again"):
        service(tmp_path, port, messages=messages)
    assert starts.num == 3
    assert messages[0] == "this machine is overloaded: load 25 on 2 cores; waiting up to 480 s"
    assert_nothing_is_left(tmp_path, port)


def test_a_file_that_cannot_be_deployed_is_tried_once_and_no_load_is_named(tmp_path, port, monkeypatch):
    starts = Starts(monkeypatch, DEPLOY_FAILED)
    with pytest.raises(TabrankError, match=r"no such module \(more in [^;]*$"):
        service(tmp_path, port)
    assert starts.num == 1


def test_a_start_that_began_under_load_keeps_its_time_when_the_load_falls(tmp_path, port, monkeypatch):
    starts, messages, limits_s = Starts(monkeypatch, RAY_FAILED, "", load=8.0), [], []
    clock = SimpleNamespace(monotonic=lambda: 200.0 * starts.num)

    def follow(run, timeout_s, progress, done):
        limits_s.append(timeout_s)
        monkeypatch.setattr("os.getloadavg", lambda: (0.3, 0.3, 0.3))
        if error := run.service().error:
            raise TabrankError(error)

    monkeypatch.setattr("serve.operate.run.local_cluster.time", clock)
    monkeypatch.setattr("serve.operate.run.local_cluster.follow", follow)
    service(tmp_path, port, messages=messages)
    # Each start takes 200 s of the 480 s that a load of four a core allows.
    assert limits_s == [280.0, 80.0]
    down(tmp_path / "run")


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("ready", "stopping the running service"),
        ("starting", "cleaning up after a start that did not finish"),
    ],
)
def test_down_calls_only_a_service_that_runs_a_running_one(tmp_path, state, told):
    run, messages = RunFolder(tmp_path), []
    run.write(SupervisedState(state))
    with idle_process(run.cluster_id, SUPERVISE):
        down(tmp_path, progress=messages.append)
    assert messages == [told]


def test_down_kills_a_supervisor_and_a_node_that_hang(tmp_path, monkeypatch):
    assert GRACE_S + 2 * STOP_S < 10
    monkeypatch.setattr("serve.operate.run.local_cluster.GRACE_S", 0.3)
    for module in ("run.local_cluster", "host.run_folder"):
        monkeypatch.setattr(f"serve.operate.{module}.STOP_S", 0.2)
    run = RunFolder(tmp_path)
    with idle_process(run.cluster_id, SUPERVISE) as supervisor, idle_process(run.cluster_id) as other:
        for process in (supervisor, other):
            process.send_signal(signal.SIGSTOP)
        stopped = down(tmp_path)
    assert len(stopped["killed"]) == 2
    assert stopped["seconds"] <= 5


@pytest.mark.integration
def test_up_twice_starts_once_and_deploys_a_changed_setting_in_place(folder, port):
    assert service(folder, port, knob=1)["action"] == "started"
    first = answer(port)
    assert (first["knob"], first["home"]) == (1, str(folder))
    assert service(folder, port, knob=1)["action"] == "none"
    messages: list[str] = []
    deployed = service(folder, port, knob=2, messages=messages)
    assert (deployed["action"], deployed["degraded"]) == ("deployed", [])
    knob = "applications[tab].deployments[FeatureFetch].user_config.knob"
    assert messages[:2] == [f"{knob}: 1 → 2", "    reconfigured in place"]
    assert [change["path"] for change in deployed["changes"]] == [knob]
    assert answer(port) == {**first, "knob": 2}
    now = status(folder / "run")
    assert now.state == "ready"
    assert now.applications["tab"].deployments["Scorer"].replicas == {"RUNNING": 1}
    changed = ["started with cluster.yaml", "deployed cluster.yaml: FeatureFetch.user_config.knob"]
    assert [one.what for one in now.changes] == changed


@pytest.mark.integration
def test_a_setting_that_serve_reads_at_its_start_is_refused_in_place(folder, port):
    service(folder, port)
    file, before = folder / "cluster.yaml", RunFolder(folder / "run").service()
    file.write_text(file.read_text().replace(f"port: {port}", "port: 1"))
    result, lines, held = diff(file, folder / "run", None, True, lambda line: None, yes=True)
    assert (result["consequence"], result["applied"], held) == ("restart", False, False)
    assert lines[-1].startswith("refused: Serve reads this setting only at its start")
    assert RunFolder(folder / "run").service().num_deploys == before.num_deploys


@pytest.mark.integration
def test_up_takes_over_a_service_whose_supervisor_was_killed(folder, port):
    started = service(folder, port, knob=1)
    first = answer(port)
    kill_supervisor(folder)
    now = look(folder / "run", None)
    assert now.state == "unwatched"
    assert "python -m serve up" in str(now.supervision)
    assert "unknown" in screen(now).plain
    assert "running" not in screen(now).plain
    with pytest.raises(TabrankError, match="the supervisor is gone; start a new one"):
        LocalService(RunFolder(folder / "run"))
    for _ in range(50):
        assert answer(port) == first
        time.sleep(0.05)
    taken = service(folder, port, knob=1)
    assert taken["action"] == "taken over"
    assert taken["pid"] != started["pid"]
    with pytest.raises(BlockingIOError):
        fcntl.flock(os.open(RunFolder(folder / "run").temp, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert status(folder / "run").applications["tab"].deployments["Scorer"].replicas == {"RUNNING": 1}
    assert service(folder, port, knob=1)["action"] == "none"
    assert service(folder, port, knob=3)["action"] == "deployed"
    assert answer(port) == {**first, "knob": 3}


@pytest.mark.integration
def test_up_deploys_again_after_a_failed_and_an_interrupted_deploy(folder, port):
    started, run = service(folder, port, knob=3), RunFolder(folder / "run")
    file = folder / "cluster.yaml"
    file.write_text(file.read_text().replace("front:build", "front:no_such"))
    with pytest.raises(TabrankError, match=r"no_such.*the service goes on with its previous configuration"):
        up(file, run_dir=run.path, yes=True)
    # No machine has room for this deployment.
    run.save_wanted(Wanted(str(file), unplaceable(run.service().document)))
    os.kill(started["pid"], signal.SIGHUP)
    until(lambda: status(folder / "run").applications["tab"].status == "DEPLOYING")
    kill_supervisor(folder)
    messages: list[str] = []
    again = service(folder, port, knob=5, messages=messages)
    assert messages[0].startswith("taking over")
    assert (again["action"], again["state"], again["deploying"]) == ("deployed", "ready", None)
    assert status(folder / "run").applications["tab"].status == "RUNNING"
    assert answer(port)["knob"] == 5


@pytest.mark.integration
def test_a_deleted_run_folder_comes_back_and_deploys_in_place(folder, port):
    service(folder, port, knob=3)
    first = answer(port)
    # Moved first: the supervisor writes into the folder while its files are deleted.
    (folder / "run").rename(folder / "deleted")
    shutil.rmtree(folder / "deleted")
    until(lambda: status(folder / "run").state == "ready")
    assert service(folder, port, knob=4)["action"] == "deployed"
    assert answer(port) == {**first, "knob": 4}


@pytest.mark.integration
def test_a_supervisor_on_a_full_disk_goes_on_and_reports_restarts_later(folder, port):
    started, run = service(folder, port, knob=4), RunFolder(folder / "run")
    supervisor = psutil.Process(started["pid"])
    # As on a full disk: not a byte more of its log and its state is written.
    supervisor.rlimit(psutil.RLIMIT_FSIZE, (0, psutil.RLIM_INFINITY))
    for title in ("ray::ServeReplica:tab:Scorer", "ray::ServeController"):
        titled(run, title).kill()
    until(lambda: status(folder / "run").state == "unwatched")
    assert "make room" in str(status(folder / "run").supervision)
    assert answer(port)["knob"] == 4
    assert supervisor.is_running()
    supervisor.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    until(lambda: {"tab/Scorer", "controller"} <= set(status(folder / "run").restarts))
    found = status(folder / "run")
    assert (found.state, found.pid) == ("ready", started["pid"])
    for name in ("tab/Scorer", "controller"):
        assert (found.restarts[name].count, found.restarts[name].last) == (1, ENDED)


@pytest.mark.integration
@pytest.mark.proof
def test_up_after_a_kill_of_all_but_haproxy_starts_again(folder, port):
    run = RunFolder(folder / "run")
    service(folder, port)
    old = run.processes()
    names = {process.pid: process.name() for process in old}
    # These include processes that set their own title, which could overwrite the marker.
    assert {"haproxy", "raylet", "gcs_server", "ray::DashboardAgent"} <= set(names.values())
    # HAProxy's admin socket and Ray's sockets, open to every user, lie in this folder.
    assert run.temp.stat().st_mode & 0o777 == 0o700
    for process in old:
        if names[process.pid] != "haproxy":
            process.kill()
    psutil.wait_procs(old, timeout=1)
    assert status(folder / "run").state == "dead"
    assert service(folder, port)["action"] == "started"
    assert not set(names) & {process.pid for process in run.processes()}
    assert answer(port)["knob"] == 1
    stopped = down(folder / "run")
    assert (stopped["was"], stopped["killed"]) == ("ready", [])
    kept = Path(stopped["kept_logs"])
    assert kept.parent == folder / "run" / "logs"
    assert any(path.name.startswith("serve_replica_tab_Scorer") for path in kept.iterdir())
    assert any(path.name.startswith("serve_controller") for path in kept.iterdir())
    assert_nothing_is_left(folder, port)


@pytest.mark.integration
@pytest.mark.proof
def test_an_application_that_cannot_start_reports_why_and_is_cleaned_up(folder, port, monkeypatch):
    # Ray starts a replica three times, with longer and longer waits.
    monkeypatch.setenv("RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT", "1")
    with pytest.raises(TabrankError, match="'tab' cannot be deployed: RuntimeError: the store cannot be"):
        service(folder, port, fail=True)
    assert_nothing_is_left(folder, port)


@pytest.mark.integration
@pytest.mark.proof
def test_down_ends_a_service_without_supervisor(folder, port):
    started = service(folder, port)
    assert answer(port)["knob"] == 1
    assert started["pid"] == kill_supervisor(folder)
    assert down(folder / "run")["was"] == "unwatched"
    assert_nothing_is_left(folder, port)


@pytest.mark.parametrize(
    ("applications", "front"),
    [
        ([], None),
        ([("a:b", "/a")], "/a"),
        ([("a:b", "/a"), (OUR_APPLICATION, "/")], ""),
        ([(OUR_APPLICATION, "/spaces")], "/spaces"),
        # Nobody can ask these.
        ([(OUR_APPLICATION, None)], None),
        ([(OUR_APPLICATION, None), ("a:b", "/a")], "/a"),
    ],
)
def test_the_probed_route_is_that_of_our_first_application_that_has_one(applications, front):
    apps = {
        str(place): ApplicationState(import_path=import_path, route_prefix=route)
        for place, (import_path, route) in enumerate(applications)
    }
    service = ServiceState(url="http://127.0.0.1:1", applications=apps)
    assert service.front == (None if front is None else f"http://127.0.0.1:1{front}")
    assert is_alive(service) == (front is None and bool(apps))
    assert set(answers_of(service)) == {
        name for name, app in apps.items() if app.is_ours and app.route_prefix
    }


def test_a_service_of_another_version_is_stopped_and_with_yes_started_again(tmp_path, port, monkeypatch):
    starts, messages = Starts(monkeypatch, ""), []

    def confirmed():
        with pytest.raises(
            TabrankError, match=r"another version of tabrank wrote it .* with --yes and --run "
        ):
            service(tmp_path, port, messages=messages)
        assert starts.num == 0
        service(tmp_path, port, yes=True, messages=messages)
        assert "another version of tabrank wrote it" in messages[0]

    for act in (confirmed, lambda: down(tmp_path / "run")):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run/service.json").write_text('{"state": "ready", "of_before": 1}')
        with idle_process(RunFolder(tmp_path / "run").cluster_id, SUPERVISE):
            found = act()
    assert (starts.num, found["was"]) == (1, "unknown")
    assert "stopping the running service" in messages
