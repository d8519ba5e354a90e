"""Ingest as a process that tests kill: it reads payloads from stdin and prints duplicates."""

from __future__ import annotations

import asyncio
import struct
import sys
from contextlib import suppress
from pathlib import Path

from serve.config.settings import AppArgs
from serve.contract.errors import StoreUnavailable
from serve.ingest import writer as ingest
from serve.log import compaction, retention
from serve.log.events import unpack
from serve.storage import bucket

# Flush often, so that kills also hit the writing of segments, compaction and snapshots.
ingest.FLUSH_EVERY_S = 0.3
compaction.MIN_SEGMENTS = 3
retention.SNAPSHOTS = 1_000_000
retention.EVERY_RECORDS = 1_000
# The lock of a killed process must expire soon. Otherwise the next process would wait for it until
# it is killed in its turn.
bucket.RENEW_S, bucket.EXPIRE_S = 0.2, 0.8


async def main(folder: Path, store: str, log: str = "log") -> None:
    """Take payloads until stdin ends, then stop in order."""
    ingester = ingest.Ingester(AppArgs("tiny.toml", store, log=log), folder)
    running = asyncio.create_task(ingester.run())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )

    async def answer(payload: bytes) -> None:
        # A stalled Redis takes more than 1 s, so a caller sends records again until they are
        # acknowledged.
        while True:
            with suppress(StoreUnavailable):
                taken = await ingester.take(unpack(payload), len(payload))
                break
            await asyncio.sleep(0.1)
        sys.stdout.buffer.write(struct.pack("<I", taken.duplicates))
        sys.stdout.buffer.flush()

    while head := await reader.read(4):
        await answer(await reader.readexactly(struct.unpack("<I", head)[0]))
    ingester.stop()
    await running


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
