"""Slow clients, which send one byte per second.

Half of them send their headers slowly, the other half their bodies. They run in a separate process,
so that they do not delay the load generator:

    python -m loadtest.generator.slow_senders HOST PORT PREFIX NUM

PREFIX is the path of the application, without a slash at its end. On SIGTERM the process prints a
JSON object to stdout. It holds the largest number of clients that were connected at one time, and
how many connections ended in which way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter

from loadtest.measure.service import PATH
from serve.contract.commands import key_header

# Time between two bytes of a client.
BYTE_INTERVAL_S = 1.0
# All clients connect within this time. It is shorter than the part of a window that is not counted.
RAMP_UP_S = 4.0
# Delay after which a client connects again if the service closed its connection.
RECONNECT_DELAY_S = 0.2
PARTS = {"headers": "X-Slow: ", "body": "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n["}


class Senders:
    """Slow clients, and how their connections ended.

    `ended` counts connections by the slow part and the end, such as `body: 408` for an answer with
    this status, or `headers: closed`.
    """

    def __init__(self, host: str, port: int, prefix: str = "") -> None:
        self._host, self._port = host, port
        head = f"POST {prefix}{PATH} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in key_header().items())
        self._begins = {kind: (head + rest).encode() for kind, rest in PARTS.items()}
        self.num_connected = self.most_connected = 0
        self.ended: Counter[str] = Counter()

    async def run(self, num: int) -> None:
        """Keep `num` clients connected until cancelled; a disconnected client reconnects."""
        async with asyncio.TaskGroup() as group:
            # The clients start one after the other, so that their bytes do not come in bursts.
            for i in range(num):
                group.create_task(self._forever("headers" if i % 2 else "body", RAMP_UP_S * i / num))

    async def _forever(self, kind: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while True:
            with contextlib.suppress(OSError):
                self.ended[f"{kind}: {await self._one(self._begins[kind])}"] += 1
            await asyncio.sleep(RECONNECT_DELAY_S)

    async def _one(self, beginning: bytes) -> str:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        self.num_connected += 1
        self.most_connected = max(self.most_connected, self.num_connected)
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


async def _main(host: str, port: int, prefix: str, num: int) -> None:
    senders = Senders(host, port, prefix)
    running = asyncio.create_task(senders.run(num))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    print(json.dumps({"connected": senders.most_connected, "ended": senders.ended}))


if __name__ == "__main__":
    # The clients stand for other machines, so they must not take CPU from the service.
    os.nice(19)
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
