"""Background work of a replica: refresh the candidates, follow the models, report the state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from serve.ranking.exposure_buffer import IDLE_S
from serve.ranking.service import NOT_DIAGNOSED, RankingService
from serve.ranking.telemetry import Moment

# Pull the candidate table this often if no ranking does.
REFRESH_S = 0.2
# Diagnose the store this often: it reads the footers of four files.
DIAGNOSE_S = 5.0

# Wait so long at the start for Ingest to bring the store up to the log. While a change of surface
# is deployed, the replicas before answer meanwhile.
WRITER_S = 20.0
LOOK_S = 0.1

Step = Callable[[RankingService], Awaitable[None]]


async def keep_up(fetcher: RankingService) -> None:
    """Keep table and models fresh, control load and send exposures, until cancelled.

    Each runs as its own task: a scorer that loads slowly must not stop the table updates. An
    internal error in one task ends all of them and is raised, so that the replica restarts.
    """
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fetcher.exposure_buffer.run(IDLE_S if fetcher.event_clock else 0.0))
        tasks.create_task(fetcher.admission.run())
        tasks.create_task(fetcher.rollout.run())
        for step, every_s in ((_update, REFRESH_S), (_follow, REFRESH_S), (_diagnose, DIAGNOSE_S)):
            tasks.create_task(_repeat(step, fetcher, every_s))


async def _repeat(step: Step, fetcher: RankingService, every_s: float) -> None:
    while True:
        await step(fetcher)
        await asyncio.sleep(every_s)


async def _update(fetcher: RankingService) -> None:
    _pull(fetcher)
    moment = Moment(
        fetcher.freshness_ms,
        fetcher.exposure_buffer.num_dropped,
        fetcher.exposure_buffer.num_too_large,
        fetcher.config.kill_switch,
        fetcher.model.version if fetcher.model else None,
        fetcher.admission.load_shedder.level,
        fetcher.rollout.take_sums(),
    )
    fetcher.metrics.tick(moment)


async def refresh(fetcher: RankingService) -> None:
    """Update and diagnose the candidate table, and follow the model pointers; log failures."""
    await _diagnose(fetcher)
    await _follow(fetcher)


async def await_writer(fetcher: RankingService) -> None:
    """Update as `refresh` does, until the store has the log's records, or for `WRITER_S`."""
    until_s = time.monotonic() + WRITER_S
    await refresh(fetcher)
    while fetcher.is_behind and time.monotonic() < until_s:
        await asyncio.sleep(LOOK_S)
        await _diagnose(fetcher)


async def _diagnose(fetcher: RankingService) -> None:
    try:
        log_end = await asyncio.to_thread(fetcher.declared.log_end)
        _pull(fetcher)
        fetcher.diagnose_store(log_end)
    # A diagnosis that fails must stop no ranking.
    except Exception as error:
        fetcher.warn(NOT_DIAGNOSED, error)


def _pull(fetcher: RankingService) -> None:
    """Update the candidate table from the store."""
    try:
        fetcher.live.read([])
    # After any failure, go on serving from the table as it is.
    except Exception as error:
        fetcher.warn("store_unavailable", error)


async def _follow(fetcher: RankingService) -> None:
    """Follow the model pointers and the settings, and report bad versions."""
    try:
        await fetcher.models.follow(fetcher.config)
    except Exception as error:
        fetcher.warn("model_refused", error)
    await fetcher.rollout.report()
