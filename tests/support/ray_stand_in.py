"""Stand-in for Ray and the supervisor: the service's processes are objects of this process.

The classes in these processes, the commands and all files are the real ones.
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
from serve.rollout.registry import ModelRegistry
from serve.storage.bucket import place
from serve.stores.lmdb import LmdbStore


class Cluster:
    """Ray: it holds a document, and starts replicas from what the last deploy bound to them."""

    def __init__(self, base):
        self.base = base
        self.document = {}
        self.fronts, self.scorer, self.writer = [], None, None
        self.supervisor = None
        # True if the supervisor is to be killed once Ray has the next document.
        self.is_doomed = False
        # The errors of deploys that failed.
        self.failures = []
        # The ids of the events and exposures that Ingest acknowledged, each with its viewer.
        self.taken = {}
        self._bound = {}
        self._num_killed = 0
        self._pids = count(1)
        self._runner = asyncio.Runner()

    def close(self):
        """End all processes without a word."""
        for front in self.fronts:
            front.live.close()
        self._runner.close()

    def run(self, coroutine):
        """Let the processes work until something is done."""
        return self._runner.run(coroutine)

    def start(self, run_folder):
        """Start the service with what is wanted in a run folder."""
        run_folder.log.touch()
        self.supervisor = FakeSupervisor(run_folder, self)
        self.supervisor._begin()

    def deploy(self, document):
        """Bring the application to a document: it rolls, or gets its live settings."""
        (old,) = self.document.get("applications", [{}])
        (new,) = document["applications"]
        self.document = document
        if old.get("args") != new["args"]:
            front = built(new["args"])._bound_deployment
            bound = [front, *(application._bound_deployment for application in front.init_args[2:])]
            # Ray keeps the arguments packed. After settings and folder come handles.
            self._bound = {one.name: pickle.dumps(one.init_args[:2]) for one in bound}
            self.run(self._roll())
        elif live_settings(old) != live_settings(new):
            self.run(self._reconfigure())
        self.scale(_front_of(new)["num_replicas"])

    async def _roll(self):
        before, writer = self.fronts, self.writer
        self.scorer, self.writer = self._scorer(), await self._writer()
        # The old replicas still answer, and the new writer takes what they send.
        for front in before:
            await front.exposure_buffer.flush()
        self.fronts = [await self._front() for _ in before or [None]]
        for front in before:
            await front.exposure_buffer.flush()
            front.live.close()
        if writer is not None:
            writer.stop()
            await writer.finish()

    async def _reconfigure(self):
        (application,) = self.document["applications"]
        for front in self.fronts:
            await front.settings.change(live_settings(application))

    def scale(self, num):
        """Start or stop replicas of FeatureFetch until there are so many."""
        while len(self.fronts) < num:
            self.fronts.append(self.run(self._front()))
        for front in self.fronts[num:]:
            self.run(front.exposure_buffer.flush())
            front.live.close()
        del self.fronts[num:]

    def kill(self, kind):
        """Kill a process; Ray starts another one in its place, but no supervisor."""
        self._num_killed += 1
        if kind == "FeatureFetch":
            at = self._num_killed % len(self.fronts)
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
            self.writer = self.run(self._writer())

    def _arguments(self, name):
        args, base = pickle.loads(self._bound[name])
        return args, Path(base)

    async def _front(self):
        args, base = self._arguments(OUR_INGRESS)
        in_process = ModelHolder(place(args.models, base), args.backend)
        front = RankingService(args, base, Peers(self, in_process), None, in_process, "tiny")
        (application,) = self.document["applications"]
        front.settings.start(UserConfig.from_mapping(live_settings(application)))
        await await_writer(front)
        return front

    def _scorer(self):
        args, base = self._arguments("Scorer")
        models = ModelHolder(place(args.models, base), args.backend)
        with suppress(TabrankError):
            models.load_current()
        return models

    async def _writer(self):
        writer = Ingester(*self._arguments("Ingest"))
        await writer.take_over()
        return writer

    async def refresh(self, *, sends):
        """Let each replica do what its background work does within a second."""
        for front in self.fronts if sends else ():
            await front.exposure_buffer.flush()
        for front in self.fronts:
            with suppress(TabrankError):
                front.live.read([])
            # A version that is refused is reported and left out.
            with suppress(TabrankError):
                await front.models.follow(front.settings.config)
            await front.rollout.report()

    @property
    def applications(self):
        """What Serve reports."""
        return {
            application["name"]: ApplicationState(
                status="RUNNING",
                route_prefix=application["route_prefix"],
                import_path=OUR_APPLICATION,
                ingress=OUR_INGRESS,
                deployments={name: DeploymentState() for name in DEPLOYMENTS},
            )
            for application in self.document["applications"]
        }

    @contextmanager
    def patched(self):
        """Let the commands find these processes, and let nothing wait."""
        found = {
            "serve.operate.run.local_cluster.is_alive": lambda service: True,
            "serve.operate.run.local_cluster.answers_of": lambda service: {},
            "serve.operate.run.local_cluster._detach": lambda config, run, *_: self.take_over(run),
            "serve.operate.run.supervisor.is_alive": lambda service: True,
            "serve.operate.run.supervisor.nodes": list,
            "serve.operate.diff.meaning.median_ms": lambda state, application: None,
            "serve.model.scorer_cache.load_scorer": FakeScorer,
            # To parse a text takes a millisecond, and each process parses it.
            "serve.config.settings.read_surface": read_once,
            "serve.features.surface.read_surface": read_once,
            "serve.model.compatibility.read_surface": read_once,
            "serve.ranking.upkeep.WRITER_S": 0.0,
            "serve.stores.candidate_table.RETRY_S": 0.0,
            "serve.stores.candidate_table.PATIENCE": 0,
            "serve.ingest.writer.TAKE_BACK_S": 0.0,
            "serve.ingest.writer.UPKEEP_SHARE": 1.0,
            # To wait for threads takes a third of the time on a busy machine.
            "asyncio.to_thread": at_once,
        }
        node = [SimpleNamespace(environ=dict)] * len(NODE)
        of_the_machine = {
            "supervisors": lambda run, processes=None: [self.supervisor] if self.supervisor else [],
            "processes": lambda run: [],
            "node": lambda run: node,
            "temp": None,
        }
        environment = {"TABRANK_HOME": str(self.base), HAPROXY_PORT: "0", METRICS_PORT: "0"}
        with ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, environment))
            for name, value in found.items():
                stack.enter_context(mock.patch(name, value))
            for name, value in of_the_machine.items():
                stack.enter_context(mock.patch.object(RunFolder, name, value))
            yield

    def take_over(self, run_folder):
        """Start a supervisor for the processes that run."""
        self.supervisor = FakeSupervisor(run_folder, self)
        self.supervisor.attach()
        # All of them have the id of this process.
        self.supervisor._save(pid=-next(self._pids))


class FakeSupervisor(Supervisor):
    """Supervisor that deploys at once when it gets a signal."""

    def __init__(self, run_folder, cluster):
        super().__init__(run_folder)
        self._cluster = cluster

    def _start(self):
        pass

    def _connect(self, config):
        pass

    def _deploy(self, config):
        cluster = self._cluster
        try:
            cluster.deploy(pickle.loads(pickle.dumps(config.serve)))
        except Exception as error:
            cluster.failures.append(error)
            raise
        if cluster.is_doomed:
            cluster.is_doomed, cluster.supervisor = False, None
            raise Killed
        document, applications = document_of(config), cluster.applications
        self._save(config=str(config.path), document=document, applications=applications, stage="serving")

    def send_signal(self, number):
        """Deploy what is wanted."""
        with suppress(Killed):
            self._deploy_again()


class Killed(BaseException):
    """End of a process, which nothing in it handles."""


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
        answer = await taking
        for record in records:
            # Viewers and candidates have ids too, and no viewer of their own.
            if hasattr(record, "viewer"):
                self._cluster.taken[getattr(record, "request_id", None) or record.id] = record.viewer
        return answer

    async def roll_back(self, version, verdict):
        args, base = self._cluster._arguments("Ingest")
        ModelRegistry(place(args.models, base), args.load_surface(base)).roll_back(version, verdict.reason)


class FakeScorer:
    """Network whose two outcomes order candidates in opposite ways, by version a little else."""

    def __init__(self, folder, backend):
        self._artifact = load(folder)
        self._tilt = int(self._artifact.version[-4:], 16) / 2**16

    def score(self, numeric, category):
        columns = self._artifact.encoder.columns
        assert numeric.shape[1] == len(columns.numeric), "the matrix is of another surface"
        price = np.nan_to_num(numeric[:, columns.numeric.index("price")], nan=2.5)
        rising = 1 / (1 + np.exp(2 * self._tilt - price))
        return np.stack([rising, 1 - rising][: len(self._artifact.outcomes)], axis=1)


trim = LmdbStore.trim


def dying(store, through):
    """Stand for the `trim` of a process that is killed before it."""
    if through:
        raise StoreUnavailable("killed")
    trim(store, through)


read_once = cache(read_surface)


async def at_once(function, *arguments):
    """Stand for `asyncio.to_thread`."""
    return function(*arguments)


def built(args):
    """Return the application that our builder makes of `args`, as Ray has it built."""
    # Ray's models warn about their own declarations of fields.
    with warnings.catch_warnings(action="ignore"):
        from serve.app import build

        return build(args)


def live_settings(application):
    """Return the live settings in the document of an application."""
    return _front_of(application).get("user_config", {})


def _front_of(application):
    deployments = application.get("deployments", ())
    return next((one for one in deployments if one["name"] == OUR_INGRESS), {})
