"""Clients that request `/` in a loop, and a helper that waits for a condition."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def asking(port: int, num_clients: int, outcomes: Counter[Any]) -> Iterator[None]:
    """Run clients while the block runs. Each asks in a closed loop on one connection."""
    ended = threading.Event()
    threads = [threading.Thread(target=_ask, args=(port, ended, outcomes)) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _ask(port: int, ended: threading.Event, outcomes: Counter[Any]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    while not ended.is_set():
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            outcomes[answer.status, answer.read()] += 1
        except (OSError, http.client.HTTPException) as error:
            outcomes[repr(error)] += 1
            connection.close()
    connection.close()


def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until a condition holds; return whether it did within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False
