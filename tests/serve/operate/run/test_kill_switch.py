"""Kill switch beside other commands: the real commands and supervisor, and only Ray is a fake."""

from __future__ import annotations

import random
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import yaml

from serve.config.application import OUR_APPLICATION
from serve.contract.errors import TabrankError
from serve.operate.diff import apply
from serve.operate.host.deploying import document_of
from serve.operate.host.environment import HAPROXY_PORT, METRICS_PORT
from serve.operate.host.kill_switch import switched, switched_on
from serve.operate.host.run_folder import NODE, RunFolder
from serve.operate.host.running_service import find
from serve.operate.host.service_state import ApplicationState, Deploying, SupervisedState, Wanted
from serve.operate.run import local_cluster
from serve.operate.run.supervisor import Supervisor
from tests.support.small_surface import TOML


class Fake(Supervisor):
    """Supervisor in a thread, that is also its own process; a deploy only writes its document."""

    def __init__(self, run):
        super().__init__(run)
        self._ends, self.after_deploy = False, lambda: None
        self.thread = threading.Thread(target=self.main, daemon=True)

    def _start(self):
        pass

    def _connect(self, config):
        pass

    def _deploy(self, config):
        self._save(config=str(config.path), document=document_of(config))
        self.after_deploy()

    def _watch(self):
        while not self._ends:
            time.sleep(0.001)
            if self._redeploy:
                self._redeploy = False
                self._deploy_again()

    def _shut_down(self, error):
        assert error == ""

    def send_signal(self, number):
        self._on_hangup(number, None)

    def terminate(self):
        self._ends = True
        self.thread.join()

    def status(self):
        return psutil.STATUS_ZOMBIE


class Service:
    """Service of a run folder without Ray, and the files `a.yaml` to `c.yaml` for it."""

    def __init__(self, folder):
        self.folder, self.run, self.supervisor = folder, RunFolder(folder / "run"), None
        self.node, self.fails = [], False
        (folder / "tiny.toml").write_text(TOML)
        args = {"surface": "tiny.toml", "store": "lmdb:store", "log": "log", "models": "models"}
        for name, log_features in (("a", 0.001), ("b", 0.002), ("c", 0.003)):
            live = {"name": "FeatureFetch", "user_config": {"log_features": log_features}}
            app = {"name": "tiny", "import_path": OUR_APPLICATION, "args": args, "deployments": [live]}
            file = {"http_options": {"host": "127.0.0.1", "port": 8000}, "applications": [app]}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(file))

    def start(self, *_):
        if self.fails:
            self.run.write(
                SupervisedState("failed", error="no room", applications={"tiny": ApplicationState()})
            )
            return
        self.supervisor = Fake(self.run)
        if self.node:
            self.supervisor.attach()
            # All of them have the id of this process.
            self.supervisor._service.pid = len(self.run.service().changes)
        self.node = [SimpleNamespace(environ=dict)] * len(NODE)
        self.supervisor.thread.start()

    def kill(self, *, supervisor_alone=False):
        """End its processes and leave its files, as after a crash."""
        if self.supervisor:
            self.supervisor.terminate()
        self.supervisor = None
        if not supervisor_alone:
            self.node = []
        return []

    def up(self, name, *, yes=False, progress=lambda line: None):
        local_cluster.up(
            self.folder / f"{name}.yaml", run_dir=self.run.path, yes=yes, timeout_s=5.0, progress=progress
        )

    def apply(self, name, *, yes=False):
        path = self.folder / f"{name}.yaml"
        return apply.diff(path, self.run.path, None, True, lambda line: None, yes=yes)[2]

    def popular(self, on):
        apply.popular(self.run.path, None, on, lambda line: None)

    @property
    def is_on(self):
        return bool(switched_on(self.run.service().document))


@pytest.fixture
def service(tmp_path, monkeypatch):
    service = Service(tmp_path)
    for port in (METRICS_PORT, HAPROXY_PORT):
        monkeypatch.setenv(port, "1")
    monkeypatch.setattr("serve.operate.host.deploying.POLL_S", 0.001)
    monkeypatch.setattr("serve.operate.run.supervisor.nodes", list)
    monkeypatch.setattr("serve.operate.diff.meaning.median_ms", lambda *_: None)
    alive = lambda: [service.supervisor] if service.supervisor else []  # noqa: E731
    for name in ("supervisors", "processes"):
        monkeypatch.setattr(RunFolder, name, lambda *_: alive())
    monkeypatch.setattr(RunFolder, "node", lambda self: service.node)
    monkeypatch.setattr(RunFolder, "end", lambda self: service.kill())
    monkeypatch.setattr(local_cluster, "_detach", service.start)
    monkeypatch.setattr(local_cluster, "_refuse_busy_port", lambda config: None)
    monkeypatch.setattr(local_cluster, "is_alive", lambda state: service.supervisor is not None)
    yield service
    service.kill()


def ended(act):
    """Return what a command said: True or False as it held, or its error."""
    try:
        return act() is not False
    except TabrankError as error:
        return str(error)


def test_only_off_or_yes_ends_it_whatever_else_happens(service):
    """After each of 80 acts, the switch is as the last person said who may say so."""
    draw, steps = random.Random(7), set()
    service.up("a")
    on = False
    for _ in range(80):
        act, name, yes = draw.choice(ACTS), draw.choice("ab"), draw.random() < 0.2
        steps.add((act, on))
        if act == "popular":
            on = draw.random() < 0.7
            service.popular(on)
        elif act == "interrupted":
            # The command got Ctrl-C, and the supervisor was killed before it had deployed.
            document = switched(service.run.service().document, True)
            service.run.save_wanted(Wanted(str(service.folder / "a.yaml"), document))
            service.supervisor._save(state="deploying", deploying=Deploying("a.yaml", SINCE))
            assert service.apply(name) is False
            service.kill(supervisor_alone=True)
            lines = []
            service.up(name, progress=lines.append)
            assert any("ends the kill switch" in line for line in lines)
            service.popular(on := yes)
        elif act in ("crash", "down"):
            service.kill()
            if act == "down":
                local_cluster.down(service.run.path)
            for service.fails in (True, False):
                lines = []
                ended(lambda: service.up(name, yes=yes and not service.fails, progress=lines.append))  # noqa: B023
            told = any("the kill switch was on" in line for line in lines)
            assert told == on
            on = on and not yes
        else:
            said = ended(lambda: getattr(service, act)(name, yes=yes))  # noqa: B023
            assert said is True or (on and not yes), (act, said)
            on = on and not yes
        assert service.is_on == on, (act, name, yes)
    assert len(steps) == 2 * len(ACTS)


SINCE = "2026-01-31T12:00:00+00:00"
ACTS = ("popular", "interrupted", "crash", "down", "up", "apply")
COMMANDS = {
    "on": (lambda service: service.popular(True), True),
    "off": (lambda service: service.popular(False), False),
    "apply": (lambda service: service.apply("b", yes=True), False),
    "up": (lambda service: service.up("c", yes=True), False),
}


@pytest.mark.parametrize("was_on", [True, False])
@pytest.mark.parametrize("second", COMMANDS)
@pytest.mark.parametrize("first", COMMANDS)
def test_who_read_the_service_before_another_deployed_deploys_nothing(
    first, second, was_on, service, monkeypatch
):
    service.up("a")
    service.popular(was_on)
    read = threading.Event(), threading.Event()
    said = {}

    def run(place):
        said[place] = ended(lambda: COMMANDS[(first, second)[place]][0](service))

    threads = [threading.Thread(target=run, args=(place,)) for place in (0, 1)]

    def waiting(reads):
        """Let both commands read, then the first one deploy, and then the second one."""

        def reads_and_waits(*arguments):
            found = reads(*arguments)
            if threading.current_thread() in threads:
                place = threads.index(threading.current_thread())
                read[place].set()
                assert read[1 - place].wait(5.0)
                if place == 1:
                    threads[0].join()
            return found

        return reads_and_waits

    monkeypatch.setattr(apply, "find", waiting(find))
    monkeypatch.setattr(local_cluster, "_deployed", waiting(local_cluster._deployed))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said[0] is True
    changes_nothing = (first, was_on) in (("on", True), ("off", False))
    if changes_nothing or first == second == "up":
        assert said[1] is True
    else:
        assert "another command deployed first; what stands: " in said[1]
        assert service.run.service().changes[-1].what in said[1]
    assert service.is_on == COMMANDS[first if said[1] is not True else second][1]


def test_who_deploys_at_the_very_end_of_another_deploy_waits_for_their_own(service):
    service.up("a")
    supervisor, before, done = service.supervisor, service.run.service(), threading.Event()

    def again():
        supervisor.after_deploy = done.set
        service.run.save_wanted(Wanted("b.yaml", before.document))
        supervisor.send_signal(1)

    supervisor.after_deploy = again
    service.popular(True)
    assert done.is_set()
    assert (service.run.service().num_deploys, service.is_on) == (before.num_deploys + 1, False)
