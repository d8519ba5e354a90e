"""Clients that are slow to send: half of them their headers, half their bodies, a byte a second each.

A process of its own, so that a load generator's own times stay its own:
`python -m loadtest.generator.slow_senders HOST PORT PREFIX NUM`. It tells on stdout how many of them are connected,
and on SIGTERM how they ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter

from loadtest.measure.service import PATH, key_header

EACH_S = 1.0  # between two bytes
COME_S = 4.0  # within which all have come
AGAIN_S = 0.2  # after one was cut off
STOPS = {"headers": "X-Slow: ", "body": "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n["}


class Senders:
    """All of them, and how those ended that were cut off: the status that was answered, or `closed`."""

    def __init__(self, host: str, port: int, prefix: str = "") -> None:
        self._host, self._port = host, port
        head = f"POST {prefix}{PATH} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in key_header().items())
        self._begins = {kind: (head + rest).encode() for kind, rest in STOPS.items()}
        self.num_connected = 0
        self.ended: Counter[str] = Counter()

    async def run(self, num: int) -> None:
        """Go on until cancelled; who is cut off comes again."""
        async with asyncio.TaskGroup() as group:
            for i in range(
                num
            ):  # spread, and so are their bytes and their ends: together they would be a burst
                group.create_task(self._forever("headers" if i % 2 else "body", COME_S * i / num))

    async def _forever(self, kind: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while True:
            with contextlib.suppress(OSError):
                self.ended[f"{kind}: {await self._one(self._begins[kind])}"] += 1
            await asyncio.sleep(AGAIN_S)

    async def _one(self, beginning: bytes) -> str:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        self.num_connected += 1
        answering = asyncio.create_task(reader.readline())
        try:
            writer.write(beginning)
            while not answering.done():
                await asyncio.sleep(EACH_S)
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
    told = -1
    while not running.done():
        if senders.num_connected != told:
            told = senders.num_connected
            print(json.dumps({"connected": told}), flush=True)
        await asyncio.wait([running], timeout=0.5)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    print(json.dumps({"ended": senders.ended}), flush=True)


if __name__ == "__main__":
    os.nice(19)  # they stand for other machines, whose CPU is not that of the service
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
