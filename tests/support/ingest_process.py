"""Ingest as a process that tests kill: it takes payloads from one pipe, and answers in another."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from serve.config.settings import AppArgs
from serve.contract.errors import StoreUnavailable
from serve.ingest import writer as ingest
from serve.log import compaction, retention
from serve.log.events import unpack
from serve.storage import bucket


def run(environ: Mapping[str, str], args: AppArgs, folder: Path, payloads: Connection, answers: Connection):
    """Take payloads until their pipe is closed, then stop in order; answer how many were known."""
    os.environ.update(environ)
    # Flush often, so that kills also hit the writing of segments, compaction and snapshots.
    ingest.FLUSH_EVERY_S = 0.3
    compaction.MIN_SEGMENTS = 3
    retention.SNAPSHOTS = 1_000_000
    retention.EVERY_RECORDS = 1_000
    # The lock of a killed process must expire soon. Otherwise the next process would wait for it
    # until it is killed in its turn.
    bucket.RENEW_S, bucket.EXPIRE_S = 0.2, 0.8
    asyncio.run(_take(ingest.Ingester(args, folder), payloads, answers))


async def _take(ingester: ingest.Ingester, payloads: Connection, answers: Connection) -> None:
    running = asyncio.create_task(ingester.run())
    with suppress(EOFError):
        while True:
            payload = await asyncio.to_thread(payloads.recv_bytes)
            answers.send(await _taken(ingester, payload))
    ingester.stop()
    await running


async def _taken(ingester: ingest.Ingester, payload: bytes) -> int:
    # A stalled Redis takes more than 1 s, so a caller sends records again until they are
    # acknowledged.
    while True:
        with suppress(StoreUnavailable):
            return (await ingester.take(unpack(payload), len(payload))).duplicates
        await asyncio.sleep(0.1)
