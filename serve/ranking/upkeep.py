"""Background work of a replica: refresh the candidates, follow the models, report the state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from serve.ranking.exposure_buffer import IDLE_S
from serve.ranking.service import RankingService
from serve.ranking.telemetry import Moment
from serve.storage.bucket import is_bucket

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
        tasks.create_task(service.rollout.run(service.batches.is_idle))
        tasks.create_task(_repeat(partial(_update, service), REFRESH_S))
        tasks.create_task(_repeat(partial(_follow, service), REFRESH_S))
        tasks.create_task(_repeat(service.health.look, diagnose_s))


async def _repeat(step: Callable[[], Awaitable[None]], every_s: float) -> None:
    while True:
        await step()
        await asyncio.sleep(every_s)


async def _update(service: RankingService) -> None:
    service.health.pull()
    current = service.models.current
    moment = Moment(
        service.health.freshness_ms,
        service.exposure_buffer.num_dropped,
        service.exposure_buffer.num_too_large,
        service.exposure_buffer.num_thinned,
        service.settings.config.kill_switch,
        current.version if current else None,
        service.admission.load_shedder.level,
        service.rollout.take_sums(),
    )
    service.metrics.tick(moment)


async def refresh(service: RankingService) -> None:
    """Update and diagnose the candidate table, and follow the model pointers; log failures."""
    await service.health.look()
    await _follow(service)


async def await_writer(service: RankingService) -> None:
    """Update as `refresh` does until the store has a living writer and the log's records.

    After `WRITER_S` the replica goes on without them.
    """
    until_s = time.monotonic() + WRITER_S
    await refresh(service)
    while service.health.is_behind and time.monotonic() < until_s:
        await asyncio.sleep(LOOK_S)
        await service.health.look()


async def _follow(service: RankingService) -> None:
    """Follow the model pointers and the settings, and report bad versions."""
    try:
        await service.models.follow(service.settings.config)
    except Exception as error:
        service.warn("model_refused", error)
    await service.rollout.report()
