"""The three Ray Serve deployments: thin wiring around the service, the scorers and the writer."""

import asyncio
import contextlib
import gc
import logging
import os
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve.config.settings import AppArgs, UserConfig
from serve.contract.errors import ArtifactRefused, Busy, TooLarge, WriterFenced
from serve.contract.logs import join_ray
from serve.http.app import Edge
from serve.http.auth import Authenticator
from serve.ingest.writer import Ingester
from serve.log.events import IngestResult, unpack
from serve.model.scorer_cache import ModelHolder
from serve.ranking.service import RankingService
from serve.ranking.upkeep import await_writer, keep_up
from serve.rollout.guard import Verdict
from serve.rollout.registry import ModelRegistry
from serve.runtime.metrics import IngestMetrics, RankMetrics
from serve.storage.atomic_files import PRIVATE
from serve.storage.bucket import place

# Ingest's niceness lowers its CPU priority: if cores are short, rankings come before logging.
NICENESS = 10
# Once one Scorer replica has loaded a version, wait this long for the others to load it.
OTHERS_S = 2.0
EVERY_ADDRESS = "0.0.0.0"
# How often a replica asks Serve's controller how many replicas run.
COUNT_S = 5.0
# Plain pickle is enough for calls whose arguments and results are bytes.
PICKLED = {"request_serialization": "pickle", "response_serialization": "pickle"}
# Give a replica that stops 2 s to send its last exposures.
LAST_SEND_S = 2.0


@serve.deployment
class Scorer:
    """Scorer deployment: scores a batch of candidates with the version that the caller names."""

    def __init__(self, args: AppArgs, base: str) -> None:
        join_ray(_application())
        self._models = ModelHolder(place(args.models, Path(base)), args.backend)
        try:
            self._models.load_current()
        # The ingress refuses this model too, and keeps its current one.
        except ArtifactRefused as error:
            logging.getLogger("tabrank").warning("the promoted model is refused: %s", error)

    async def score(self, version: str, payload: bytes) -> bytes:
        """Return the float32 predictions of the matrix in `payload`, with the scoring time.

        `serve.model.scorer_cache` describes the format. Runs on the event loop: a replica scores
        one batch at a time.
        """
        return self._models.score_packed(version, payload)

    async def load(self, version: str) -> None:
        """Load a version while batches are scored."""
        await self._models.prepare(version)


class _Handles:
    """The other deployments, called through their handles.

    `in_process` are the models of this process, if it scores too; they load the same versions.
    """

    def __init__(
        self, scorer: DeploymentHandle, ingest: DeploymentHandle, in_process: ModelHolder | None
    ) -> None:
        self._scorer, self._ingest, self._in_process = scorer, ingest, in_process
        # Make the handles once.
        self._score = scorer.options(method_name="score", **PICKLED)
        self._take = ingest.options(method_name="take", **PICKLED)

    async def score(self, version: str, payload: bytes) -> bytes:
        scores: bytes = await _answer(self._score.remote(version, payload))
        return scores

    async def load(self, version: str) -> None:
        await self._scorer.load.remote(version)
        if self._in_process is not None:
            await self._in_process.prepare(version)
        # A replica that hangs, or that starts later, loads the version at its first batch.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(OTHERS_S):
                await self._scorer.broadcast("load", version).results_async()

    async def ingest(self, payload: bytes) -> IngestResult:
        taken: IngestResult = await _answer(self._take.remote(payload))
        return taken

    async def roll_back(self, version: str, verdict: Verdict) -> None:
        await self._ingest.roll_back.remote(version, verdict)


# Without a user_config Ray would not call `reconfigure`, which starts the background work.
@serve.deployment(user_config={})
@serve.ingress()
class FeatureFetch:
    """HTTP ingress: admits, batches, computes features, calls `Scorer`, answers, and records.

    With `is_in_process`, this process scores small batches and reasons itself.
    """

    def __init__(
        self,
        args: AppArgs,
        base: str,
        scorer: DeploymentHandle,
        ingest: DeploymentHandle,
        is_in_process: bool = True,
    ) -> None:
        join_ray(_application())
        # With the other backend the model is on a GPU, which this process does not have.
        is_in_process = is_in_process and args.backend == "onnx"
        in_process = ModelHolder(place(args.models, Path(base)), args.backend) if is_in_process else None
        peers = _Handles(scorer, ingest, in_process)
        metrics = RankMetrics(_application())
        names = _application(), _service()
        self._service = RankingService(args, Path(base), peers, metrics, in_process, *names)
        # Assume that everybody can reach the service until Serve's controller reports the address.
        self._keys = Authenticator(host=EVERY_ADDRESS)
        self._refreshing: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply the live settings; Ray calls it at the start and at each change in place.

        At the start, invalid settings raise. Later they are logged and the replica keeps its
        current settings: Ray would stop a running replica that raises, and its successors would
        raise too.
        """
        if self._refreshing is None:
            self._counting = asyncio.get_running_loop().create_task(_share_rates(self._keys))
            self._keys.host = await _http_host()
            self._service.settings.start(UserConfig.from_mapping(user_config))
            await await_writer(self._service)
            _quiet_gc()
            self._refreshing = asyncio.get_running_loop().create_task(keep_up(self._service))
            return
        await self._service.settings.change(user_config)

    async def check_health(self) -> None:
        """Raise if the background work has stopped; Ray then restarts the replica."""
        _require_running(self._refreshing)

    async def __del__(self) -> None:
        """Send the held exposures; Ray awaits it when the replica stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SEND_S):
                await self._service.exposure_buffer.flush()

    def __serve_build_asgi_app__(self) -> Callable[..., Any]:
        """Return the ASGI application for Ray to mount."""
        return Edge(self._service, self._keys)


# As above: Ray must call `reconfigure`, which starts the writer before the first record comes.
@serve.deployment(user_config={})
class Ingest:
    """The single writer: takes events and exposures, keeps the state, and writes the log."""

    def __init__(self, args: AppArgs, base: str) -> None:
        join_ray(_application())
        os.nice(NICENESS)
        # `serve up` sets the umask; the `ray start` of a rendered cluster does not.
        os.umask(PRIVATE)
        self._metrics = IngestMetrics(_application())
        self._ingester = Ingester(args, Path(base), self._metrics.tick, service=_service())
        self._releases = ModelRegistry(place(args.models, Path(base)), args.load_surface(Path(base)))
        self._running: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Start the writer, which takes over the log; it has no live settings."""
        if self._running is None:
            _quiet_gc()
            self._running = asyncio.get_running_loop().create_task(self._ingester.run())

    async def take(self, payload: bytes) -> IngestResult | Busy | WriterFenced:
        """Take packed records and return once they are durable, or return a refusal at once.

        A refusal is returned, not raised, because Ray would log each one with a traceback.
        """
        try:
            return await self._ingester.take(unpack(payload), len(payload))
        except (Busy, WriterFenced) as refusal:
            return refusal

    async def roll_back(self, version: str, verdict: Verdict) -> None:
        """Roll back a version that FeatureFetch found bad, if it is still current or the canary."""
        if await asyncio.to_thread(self._releases.roll_back, version, verdict.reason) is not None:
            logging.getLogger("tabrank").error("rolled back from %s: %s", version, verdict.reason)
            self._metrics.rolled_back(verdict.kind)

    async def check_health(self) -> None:
        """Raise if the writer has stopped; Ray then restarts the replica."""
        _require_running(self._running)

    async def __del__(self) -> None:
        """Commit and flush the remaining records; Ray awaits it when the replica stops."""
        if self._running is not None:
            self._ingester.stop()
            await self._running


async def _answer(call: Awaitable[Any]) -> Any:
    """Await another deployment's answer without leaking the payload of a failed call.

    The traceback frames of a failure hold the call, and the call holds the failure. This cycle
    keeps the payload alive until garbage collection, which takes minutes without traffic. With a
    retry every half second, memory grew to gigabytes.

    Raises:
        Busy, WriterFenced: the other deployment returned it.
        TooLarge: gRPC refused the call for its size.
    """
    try:
        answer = await call
    except BaseException as error:
        failure: BaseException | None = error
        while failure is not None:
            traceback.clear_frames(failure.__traceback__)
            failure = failure.__context__
        del call
        if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise TooLarge(error.details()) from None
        raise
    if isinstance(answer, Busy | WriterFenced):
        raise answer
    return answer


def _require_running(task: asyncio.Task[None] | None) -> None:
    """Raise the exception that ended a background task, if the task was started."""
    if task is not None and task.done():
        task.result()
        raise RuntimeError("the background task has ended")


def _application() -> str:
    """Return the name of the application that this replica belongs to."""
    return str(serve.get_replica_context().app_name)


def _service() -> str:
    """Return what tells this application from those of all other clusters."""
    return f"{ray.get_runtime_context().get_session_name()}/{_application()}"


async def _share_rates(keys: Authenticator) -> None:
    """Keep the number of replicas that share the rate of each key, until cancelled."""
    me = serve.get_replica_context()
    while True:
        # While Serve's controller restarts, the number stays.
        with contextlib.suppress(Exception):
            # Under autoscaling, the replica's own context has no number.
            found = (await asyncio.to_thread(serve.status)).applications[me.app_name]
            keys.num_replicas = max(1, found.deployments[me.deployment].replica_states.get("RUNNING", 0))
        await asyncio.sleep(COUNT_S)


async def _http_host() -> str:
    """Return the address the service listens on; every address if the controller is unknown."""
    try:
        controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        return str((await controller.get_http_config.remote()).host)
    # With an unsupported version of Ray, require keys: closed is safer than open.
    except Exception as error:
        logging.getLogger("tabrank").error("unknown HTTP host (%s): requests need an API key", error)
        return EVERY_ADDRESS


def _quiet_gc() -> None:
    """Freeze the loaded objects and collect seldom: collection took a fifth of the CPU time.

    Requests and records leave almost no cycles; one collection in 50,000 allocations is enough.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
