"""Ingest in a process of its own, to be killed: payloads in on stdin, the number of duplicates out on stdout."""

from __future__ import annotations

import asyncio
import struct
import sys
from pathlib import Path

from serve.config.settings import AppArgs
from serve.ingest import writer as ingest
from serve.log import compaction, retention
from serve.log.events import unpack

ingest.ROLL_EVERY_S = 0.3  # so that kills fall into the writing of segments, their merging and snapshots too
compaction.WORTH_SEGMENTS = 3
retention.SNAPSHOTS = 1_000_000


async def main(folder: Path, store: str) -> None:
    """Take what comes until stdin ends, then stop in order."""
    ingester = ingest.ingester(AppArgs("tiny.toml", store, log="log"), folder)
    running = asyncio.create_task(ingester.run())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )

    async def answer(payload: bytes) -> None:
        taken = await ingester.take(unpack(payload), len(payload))
        sys.stdout.buffer.write(struct.pack("<I", taken.duplicates))
        sys.stdout.buffer.flush()

    while head := await reader.read(4):
        await answer(await reader.readexactly(struct.unpack("<I", head)[0]))
    ingester.stop()
    await running


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
