"""Background work of a replica: refresh the candidates, follow the models, report the state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from serve.ranking.exposure_buffer import IDLE_S
from serve.ranking.service import NOT_DIAGNOSED, RankingService
from serve.ranking.telemetry import Moment
from serve.storage.bucket import BucketError, is_bucket

# How often the candidate table is read if no ranking reads it.
REFRESH_S = 0.2
# How often the store is diagnosed, for which the footers of four files of the log are read.
DIAGNOSE_S = 5.0
# The same for a log in a bucket, which takes some 20 requests. Each costs money.
DIAGNOSE_BUCKET_S = 60.0

# How long a replica waits at its start for Ingest to leave a heartbeat in the store, and to bring
# it up to the log. While a change of the surface is deployed, the old replicas answer meanwhile.
WRITER_S = 20.0
LOOK_S = 0.1

Step = Callable[[RankingService], Awaitable[None]]


async def keep_up(service: RankingService) -> None:
    """Keep table and models fresh, control load and send exposures, until cancelled.

    Each of these runs as a task of its own, because a scorer that loads slowly must not stop the
    updates of the table. An internal error in one task ends all of them and is raised, so that the
    replica restarts.
    """
    diagnose_s = DIAGNOSE_BUCKET_S if is_bucket(service.args.log) else DIAGNOSE_S
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service.exposure_buffer.run(IDLE_S if service.event_clock else 0.0))
        tasks.create_task(service.admission.run())
        tasks.create_task(service.rollout.run())
        for step, every_s in ((_update, REFRESH_S), (_follow, REFRESH_S), (_diagnose, diagnose_s)):
            tasks.create_task(_repeat(step, service, every_s))


async def _repeat(step: Step, service: RankingService, every_s: float) -> None:
    while True:
        await step(service)
        await asyncio.sleep(every_s)


async def _update(service: RankingService) -> None:
    _pull(service)
    moment = Moment(
        service.freshness_ms,
        service.exposure_buffer.num_dropped,
        service.exposure_buffer.num_too_large,
        service.exposure_buffer.num_thinned,
        service.config.kill_switch,
        service.model.version if service.model else None,
        service.admission.load_shedder.level,
        service.rollout.take_sums(),
    )
    service.metrics.tick(moment)


async def refresh(service: RankingService) -> None:
    """Update and diagnose the candidate table, and follow the model pointers; log failures."""
    await _diagnose(service)
    await _follow(service)


async def await_writer(service: RankingService) -> None:
    """Update as `refresh` does until the store has a living writer and the log's records.

    After `WRITER_S` the replica goes on without them.
    """
    until_s = time.monotonic() + WRITER_S
    await refresh(service)
    while service.is_behind and time.monotonic() < until_s:
        await asyncio.sleep(LOOK_S)
        await _diagnose(service)


async def _diagnose(service: RankingService) -> None:
    try:
        log_end = None
        try:
            log_end = await asyncio.to_thread(service.declared.log_end)
            service.log_error = None
        except BucketError as error:
            service.log_error = error
        _pull(service)
        service.diagnose_store(log_end)
    # A diagnosis that fails must stop no ranking.
    except Exception as error:
        service.warn(NOT_DIAGNOSED, error)


def _pull(service: RankingService) -> None:
    """Update the candidate table from the store."""
    try:
        service.live.read([])
    # After any failure, go on serving from the table as it is.
    except Exception as error:
        service.warn("store_unavailable", error)


async def _follow(service: RankingService) -> None:
    """Follow the model pointers and the settings, and report bad versions."""
    try:
        await service.models.follow(service.config)
    except Exception as error:
        service.warn("model_refused", error)
    await service.rollout.report()
