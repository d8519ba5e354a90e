"""Slow clients, which send one byte per second: half of them headers, the other half bodies."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from loadtest.measure.service import PATH
from serve.contract.commands import key_header

BYTE_INTERVAL_S = 1.0
# All clients connect within this time.
RAMP_UP_S = 4.0
# Delay after which a client connects again if the service closed its connection.
RECONNECT_DELAY_S = 0.2
PARTS = {"headers": "X-Slow: ", "body": "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n["}


class Senders:
    """Slow clients, and how their connections ended.

    `ended` counts connections by the slow part and the end, such as `body: 408` for an answer with
    this status, or `headers: closed`.
    """

    def __init__(self, host, port):
        self._host, self._port = host, port
        head = f"POST {PATH} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in key_header().items())
        self._begins = {kind: (head + rest).encode() for kind, rest in PARTS.items()}
        self.num_connected = 0
        self.ended = Counter()

    async def run(self, num):
        """Keep `num` clients connected until cancelled; a disconnected client reconnects."""
        async with asyncio.TaskGroup() as group:
            # The clients start one after the other, so that their bytes do not come in bursts.
            for i in range(num):
                group.create_task(self._forever("headers" if i % 2 else "body", RAMP_UP_S * i / num))

    async def _forever(self, kind, after_s):
        await asyncio.sleep(after_s)
        while True:
            with contextlib.suppress(OSError):
                self.ended[f"{kind}: {await self._one(self._begins[kind])}"] += 1
            await asyncio.sleep(RECONNECT_DELAY_S)

    async def _one(self, beginning):
        reader, writer = await asyncio.open_connection(self._host, self._port)
        self.num_connected += 1
        answering = asyncio.create_task(reader.readline())
        try:
            writer.write(beginning)
            while not answering.done():
                await asyncio.sleep(BYTE_INTERVAL_S)
                writer.write(b" ")
            line = answering.result().split(b" ")
            return line[1].decode("latin-1") if len(line) > 1 else "closed"
        finally:
            self.num_connected -= 1
            answering.cancel()
            writer.close()
