"""The three Ray Serve deployments: thin wiring around `FeatureFetcher`, `ModelHolder` and `Ingester`."""

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
from serve.contract.errors import ArtifactRefused, TabrankError, TooLarge
from serve.contract.logs import join_ray
from serve.http.app import Edge
from serve.http.auth import Keys
from serve.ingest.writer import ingester
from serve.log.atomic_files import PRIVATE
from serve.log.events import Taken, unpack
from serve.model.scorer_cache import ModelHolder
from serve.ranking.service import FeatureFetcher
from serve.rollout.guard import Verdict
from serve.rollout.registry import Releases
from serve.runtime.metrics import IngestMetrics, RankMetrics

NICENESS = 10  # of Ingest: where cores are short, what is logged waits for what is asked
OTHERS_S = 2.0  # that a version waits for the other replicas of Scorer, once one has it ready
EVERY_ADDRESS = "0.0.0.0"
LAST_SEND_S = 2.0  # for a replica that stops to hand its last exposures on


@serve.deployment
class Scorer:
    """Scores a batch of candidates with a version that its caller names."""

    def __init__(self, args: AppArgs, base: str) -> None:
        join_ray(_application())
        self._models = ModelHolder(Path(base) / args.models, args.backend)
        try:
            self._models.load_current()
        except ArtifactRefused as error:  # the ingress refuses it too, and goes on with what it has
            logging.getLogger("tabrank").warning("the promoted model is refused: %s", error)

    async def score(self, version: str, payload: bytes) -> bytes:
        """Float32 probabilities of the matrix in `payload`, and their time (`serve.model.scorer_cache`).

        It runs on the loop: one batch at a time a replica.
        """
        return self._models.score_timed(version, payload)

    async def load(self, version: str) -> None:
        """Have a version ready, while batches are scored."""
        await self._models.prepare(version)


@serve.deployment(user_config={})  # without any Ray would not call `reconfigure`, and nothing would begin
@serve.ingress()
class FeatureFetch:
    """The HTTP ingress: admits, batches, fetches, computes features, asks `Scorer`, answers, tells `Ingest`."""

    def __init__(self, args: AppArgs, base: str, scorer: DeploymentHandle, ingest: DeploymentHandle) -> None:
        join_ray(_application())
        # Bytes go and bytes come: plain pickle does, and the handle of a method is made once, not each call.
        score = scorer.options(
            method_name="score", request_serialization="pickle", response_serialization="pickle"
        )

        async def call_scorer(version: str, payload: bytes) -> bytes:
            scores: bytes = await _answer(score.remote(version, payload))
            return scores

        async def load_model(version: str) -> None:
            await scorer.load.remote(version)
            with contextlib.suppress(
                Exception
            ):  # one that hangs, or comes later, loads it at its first batch
                async with asyncio.timeout(OTHERS_S):
                    await scorer.broadcast("load", version).results_async()

        take = ingest.options(
            method_name="take", request_serialization="pickle", response_serialization="pickle"
        )

        async def call_ingest(payload: bytes) -> Taken:
            taken: Taken = await _answer(take.remote(payload))
            return taken

        async def roll_back(version: str, verdict: Verdict) -> None:
            await ingest.roll_back.remote(version, verdict)

        metrics = RankMetrics(_application())
        self._fetcher = FeatureFetcher(
            args, Path(base), call_scorer, load_model, call_ingest, metrics, roll_back
        )
        self._keys = Keys(host=EVERY_ADDRESS)  # until it is known
        self._refreshing: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take the live knobs; Ray calls it at start and at each change in place.

        Ray stops a running replica that refuses a change, and its successors would refuse it too: so a bad one is
        logged, and the replica goes on with what it has. At the start it raises.
        """
        self._keys.num_replicas = _num_replicas()
        if self._refreshing is None:
            self._keys.host = await _http_host()
            self._fetcher.configure(UserConfig.from_mapping(user_config))
            await self._fetcher.refresh()
            _quiet_gc()
            self._refreshing = asyncio.get_running_loop().create_task(self._fetcher.refresh_forever())
            return
        try:
            await self._fetcher.reconfigure(UserConfig.from_mapping(user_config))
        except TabrankError as error:
            logging.getLogger("tabrank").error("the settings stay as they were: %s", error)

    async def check_health(self) -> None:
        """Raise where nothing is kept fresh or sent on any more: Ray then starts another."""
        _require_running(self._refreshing)

    async def __del__(self) -> None:
        """Send on what is held; Ray awaits it when the replica stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SEND_S):
                await self._fetcher.outbox.flush()

    def __serve_build_asgi_app__(self) -> Callable[..., Any]:
        """The ASGI application that Ray mounts."""
        return Edge(self._fetcher, self._keys)


@serve.deployment
class Ingest:
    """The one writer: events and exposures in, state and journal out, the journal into the log's segments."""

    def __init__(self, args: AppArgs, base: str) -> None:
        join_ray(_application())
        os.nice(NICENESS)
        # Under `serve up` it is inherited; a rendered cluster's `ray start` does not set it.
        os.umask(PRIVATE)
        self._metrics = IngestMetrics(_application())
        self._ingester = ingester(args, Path(base), self._metrics.tick)
        self._releases = Releases(Path(base) / args.models, by="service")
        self._running: asyncio.Task[None] | None = None

    async def take(self, payload: bytes) -> Taken:
        """Take packed records; the answer comes once they are durable."""
        if self._running is None:
            _quiet_gc()
            self._running = asyncio.get_running_loop().create_task(self._ingester.run())
        return await self._ingester.take(unpack(payload), len(payload))

    async def roll_back(self, version: str, verdict: Verdict) -> None:
        """Take back a version that a replica of FeatureFetch found bad; nothing if it is neither current nor canary."""
        if await asyncio.to_thread(self._releases.roll_back, version, verdict.reason) is not None:
            logging.getLogger("tabrank").error("rolled back from %s: %s", version, verdict.reason)
            self._metrics.rolled_back(verdict.kind)

    async def check_health(self) -> None:
        """Raise where nothing commits any more: Ray then starts another."""
        _require_running(self._running)

    async def __del__(self) -> None:
        """Commit and roll what is left; Ray awaits it when the replica stops."""
        if self._running is not None:
            self._ingester.stop()
            await self._running


async def _answer(call: Awaitable[Any]) -> Any:
    """Await another deployment's answer; a failed call leaves nothing of its payload behind.

    The frames of a failure's traceback hold the call, and the call holds the failure. That cycle
    holds the payload until it is collected, which takes minutes without traffic: with a retry
    every half second it grew to gigabytes.

    Raises:
        TooLarge: gRPC refused the call for its size.
    """
    try:
        return await call
    except BaseException as error:
        failure: BaseException | None = error
        while failure is not None:
            traceback.clear_frames(failure.__traceback__)
            failure = failure.__context__
        del call
        if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise TooLarge(error.details()) from None
        raise


def _require_running(task: asyncio.Task[None] | None) -> None:
    """Raise what ended a task that was begun and is to run for ever."""
    if task is not None and task.done():
        task.result()
        raise RuntimeError("it has ended")


def _application() -> str:
    """The name of the application that this replica belongs to."""
    return str(serve.get_replica_context().app_name)


def _num_replicas() -> int:
    """Over how many replicas a key's rate is divided; 1 where Ray does not say, as under autoscaling."""
    told = serve.get_replica_context().world_size
    return told if isinstance(told, int) and told > 0 else 1


async def _http_host() -> str:
    """The address that the service listens on, which Serve's controller knows; every one where it does not tell."""
    try:
        controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        return str((await controller.get_http_config.remote()).host)
    except Exception as error:  # of another Ray: closed is safer than open
        logging.getLogger("tabrank").error("where HTTP listens is not known (%s): only keys open it", error)
        return EVERY_ADDRESS


def _quiet_gc() -> None:
    """Leave what was loaded out of garbage collection, and collect seldom: it took a fifth of the event loop.

    A request and a record leave no cycles behind; what little does is found at one collection in 50,000 allocations.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
