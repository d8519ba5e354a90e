"""Stand-in for Ray and the supervisor: the service's processes as objects of one process.

The classes in the processes, the commands and all files are the real ones.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import warnings
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from serve.config.application import DEPLOYMENTS, OUR_APPLICATION, OUR_INGRESS
from serve.config.settings import UserConfig
from serve.contract.errors import StoreUnavailable, TabrankError
from serve.features.surface import read_surface
from serve.ingest.writer import Ingester
from serve.log.events import unpack
from serve.model.artifact import load
from serve.model.scorer_cache import ModelHolder
from serve.operate.host.deploying import document_of
from serve.operate.host.environment import HAPROXY_PORT, METRICS_PORT
from serve.operate.host.run_folder import NODE, RunFolder
from serve.operate.host.service_state import ApplicationState, DeploymentState
from serve.operate.run.supervisor import Supervisor
from serve.ranking.service import RankingService
from serve.ranking.upkeep import await_writer
from serve.stores.lmdb import LmdbStore


class Cluster:
    """Ray, which holds a document, and the replicas that it started from it."""

    def __init__(self, base):
        self.base = base
        self.document = {}
        self.fronts, self.scorer, self.writer = [], None, None
        self.supervisor = None
        # True if the supervisor is to be killed once Ray has the next document.
        self.is_doomed = False
        # What a version did wrong on a replica, and why a deploy failed.
        self.verdicts, self.failures = [], []
        # What the last build bound to each deployment, as Ray keeps it.
        self._bound = {}
        self._runner = asyncio.Runner()
        self._pids = count(1)

    def close(self):
        """End all processes without a word."""
        for front in self.fronts:
            front.live.close()
        self._runner.close()

    def run(self, coroutine):
        """Let the processes work until something is done."""
        return self._runner.run(coroutine)

    def deploy(self, document):
        """Bring the application to a document as Ray does: it rolls, or gets its live settings."""
        (old,) = self.document.get("applications", [{}])
        (new,) = document["applications"]
        self.document = document
        if old.get("args") != new["args"]:
            front = built(new["args"])._bound_deployment
            bound = [front, *(app._bound_deployment for app in front.init_args[2:])]
            # Other arguments than settings and folder are the handles.
            self._bound = {one.name: pickle.dumps(one.init_args[:2]) for one in bound}
            self.run(self._roll())
        elif live_settings(old) != live_settings(new):
            self.run(self._reconfigure())
        self.scale(num_replicas(new))

    async def _roll(self):
        before, writer = self.fronts, self.writer
        self.writer = Ingester(*self._arguments("Ingest"))
        await self.writer.take_over()
        # The replicas before answer meanwhile, and the new writer takes what they send.
        for front in before:
            await front.exposure_buffer.flush()
        self.scorer = self._scorer()
        self.fronts = [await self._front() for _ in range(max(len(before), 1))]
        for front in before:
            await front.exposure_buffer.flush()
            front.live.close()
        if writer is not None:
            writer.stop()
            await writer.finish()

    async def _reconfigure(self):
        (application,) = self.document["applications"]
        for front in self.fronts:
            try:
                await front.reconfigure(UserConfig.from_mapping(live_settings(application)))
            except TabrankError as error:
                front.settings_error = error

    def scale(self, num):
        """Start or stop replicas of FeatureFetch until there are so many."""
        while len(self.fronts) < num:
            self.fronts.append(self.run(self._front()))
        for front in self.fronts[num:]:
            self.run(front.exposure_buffer.flush())
            front.live.close()
        del self.fronts[num:]

    def kill(self, kind, at):
        """Kill a process; Ray starts another one in its place, but no supervisor."""
        if kind == "FeatureFetch":
            at %= len(self.fronts)
            self.fronts[at].live.close()
            self.fronts[at] = self.run(self._front())
        elif kind == "Scorer":
            self.scorer = self._scorer()
        elif kind == "supervisor":
            self.supervisor = None
        else:
            if kind == "Ingest in a flush":
                with mock.patch.object(LmdbStore, "trim", dying):
                    self.writer.flush_journal()
            self.writer = Ingester(*self._arguments("Ingest"))
            self.run(self.writer.take_over())

    def _arguments(self, name):
        args, base = pickle.loads(self._bound[name])
        return args, Path(base)

    def _scorer(self):
        args, base = self._arguments("Scorer")
        models = ModelHolder(base / args.models, args.backend)
        with suppress(TabrankError):
            models.load_current()
        return models

    async def _front(self):
        args, base = self._arguments(OUR_INGRESS)
        in_process = ModelHolder(base / args.models, args.backend)
        front = RankingService(args, base, Peers(self, in_process), None, in_process, "tiny")
        (application,) = self.document["applications"]
        front.configure(UserConfig.from_mapping(live_settings(application)))
        await await_writer(front)
        return front

    async def refresh(self, *, sends):
        """Let each replica see what its background work sees within a second."""
        for front in self.fronts if sends else ():
            await front.exposure_buffer.flush()
        for front in self.fronts:
            with suppress(TabrankError):
                front.live.read([])
            # A version that is refused is tried no more, and the others are loaded.
            with suppress(TabrankError):
                await front.models.follow(front.config)
            await front.rollout.report()

    @property
    def applications(self):
        """What Serve reports."""
        return {
            app["name"]: ApplicationState(
                status="RUNNING",
                route_prefix=app["route_prefix"],
                import_path=OUR_APPLICATION,
                ingress=OUR_INGRESS,
                deployments={name: DeploymentState() for name in DEPLOYMENTS},
            )
            for app in self.document["applications"]
        }

    @contextmanager
    def patched(self):
        """Let the commands find these processes instead of those of a machine."""
        node = [SimpleNamespace(environ=dict)] * len(NODE)
        environment = {"TABRANK_HOME": str(self.base), HAPROXY_PORT: "0", METRICS_PORT: "0"}
        found = {
            "serve.operate.run.local_cluster.is_alive": lambda service: True,
            "serve.operate.run.local_cluster.answers_of": lambda service: {},
            "serve.operate.run.local_cluster._detach": lambda *_: self.take_over(),
            "serve.operate.run.supervisor.is_alive": lambda service: True,
            "serve.operate.run.supervisor.nodes": list,
            "serve.operate.host.running_service.status_code": lambda url: 200,
            "serve.operate.diff.meaning.median_ms": lambda state, app: None,
            "serve.config.settings.read_surface": read_once,
            "serve.features.surface.read_surface": read_once,
            "serve.model.compatibility.read_surface": read_once,
            "serve.ranking.upkeep.WRITER_S": 0.0,
            "serve.stores.candidate_table.RETRY_S": 0.0,
            "serve.stores.candidate_table.PATIENCE": 0,
            "serve.ingest.writer.TAKE_BACK_S": 0.0,
            "serve.ingest.writer.UPKEEP_SHARE": 1.0,
            "serve.model.scorer_cache.load_scorer": FakeScorer,
            # To wait for a thread takes a third of the time on a busy machine.
            "asyncio.to_thread": at_once,
        }
        with ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, environment))
            for name, value in found.items():
                stack.enter_context(mock.patch(name, value))
            for name, value in {
                "supervisors": lambda run, processes=None: [self.supervisor] if self.supervisor else [],
                "processes": lambda run: [],
                "node": lambda run: node,
                "temp": None,
            }.items():
                stack.enter_context(mock.patch.object(RunFolder, name, value))
            yield

    def start(self, run):
        """Start the service with what is wanted in a run folder."""
        run.log.touch()
        self.supervisor = FakeSupervisor(run, self)
        self.supervisor._begin()

    def take_over(self):
        """Start a supervisor for the processes that run."""
        self.supervisor = FakeSupervisor(self.run_folder, self)
        self.supervisor.attach()
        self.supervisor._save(pid=-next(self._pids))


class FakeSupervisor(Supervisor):
    """Supervisor that deploys at once when it gets a signal, and has no thread of its own."""

    def __init__(self, run, cluster):
        super().__init__(run, haproxy=True)
        self._cluster = cluster
        cluster.run_folder = run

    def _start(self):
        pass

    def _connect(self, config):
        pass

    def _deploy(self, config):
        try:
            self._cluster.deploy(pickle.loads(pickle.dumps(config.serve)))
        except Exception as error:
            self._cluster.failures.append(error)
            raise
        if self._cluster.is_doomed:
            self._cluster.is_doomed, self._cluster.supervisor = False, None
            raise Killed
        applications = self._cluster.applications
        document = document_of(config)
        self._save(config=str(config.path), document=document, applications=applications, stage="serving")

    def send_signal(self, number):
        """Deploy what is wanted."""
        with suppress(Killed):
            self._deploy_again()


class Killed(BaseException):
    """End of a process within a call; nothing handles it."""


class Peers:
    """The other deployments, as a replica of FeatureFetch reaches them."""

    def __init__(self, cluster, in_process):
        self._cluster, self._in_process = cluster, in_process

    async def score(self, version, payload):
        return self._cluster.scorer.score_packed(version, payload)

    async def load(self, version):
        await self._cluster.scorer.prepare(version)
        await self._in_process.prepare(version)

    async def ingest(self, payload):
        writer, records = self._cluster.writer, unpack(payload)
        taking = asyncio.ensure_future(writer.take(records, len(payload)))
        await asyncio.sleep(0)
        await writer.commit_waiting()
        return await taking

    async def roll_back(self, version, verdict):
        self._cluster.verdicts.append((version, verdict))


class FakeScorer:
    """Network whose outcomes order candidates in opposite ways, a little otherwise in each version."""

    def __init__(self, folder, backend):
        self._artifact = load(folder)
        self._tilt = int(self._artifact.version[-4:], 16) / 2**16

    def score(self, numeric, category):
        columns = self._artifact.encoder.columns
        assert numeric.shape[1] == len(columns.numeric), "the matrix is of another surface"
        price = np.nan_to_num(numeric[:, columns.numeric.index("price")], nan=2.5)
        rising = 1 / (1 + np.exp(-price + 2 * self._tilt))
        return np.stack([rising, 1 - rising][: len(self._artifact.outcomes)], axis=1)


# To parse a text takes a millisecond, and each process parses it.
read_once = cache(read_surface)


async def at_once(function, *arguments):
    """Stand for `asyncio.to_thread`."""
    return function(*arguments)


def built(args):
    """Return the application that our builder makes of `args`; importing it imports Ray."""
    # Ray's models warn about their own declarations of fields.
    with warnings.catch_warnings(action="ignore"):
        from serve.app import build

        return build(args)


def dying(store, through):
    """Stand for `LmdbStore.trim` of a process that ends before it."""
    if through:
        raise StoreUnavailable("killed")
    raise_if_fenced(store, through)


raise_if_fenced = LmdbStore.trim


def live_settings(application):
    """Return the live settings of an application's document."""
    return _front_of(application).get("user_config") or {}


def num_replicas(application):
    """Return how many replicas of FeatureFetch a document asks for."""
    return _front_of(application).get("num_replicas", 1)


def _front_of(application):
    deployments = application.get("deployments", ())
    return next((one for one in deployments if one["name"] == OUR_INGRESS), {})
