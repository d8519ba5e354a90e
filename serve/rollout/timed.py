"""A scorer's answer: its scores, and behind them how long it took, which no queue and no network is part of."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

TAIL = struct.Struct("<f")  # ms


def timed(scores: bytes, took_ms: float) -> bytes:
    """Float32 scores with their time."""
    return scores + TAIL.pack(took_ms)


def untimed(answer: bytes, num_rows: int) -> tuple[NDArray[np.float32], float | None]:
    """The scores in an answer for so many rows, and their time where the scorer tells it."""
    if len(answer) == 4 * num_rows + TAIL.size:
        return np.frombuffer(answer, np.float32, num_rows), float(TAIL.unpack_from(answer, 4 * num_rows)[0])
    return np.frombuffer(answer, np.float32), None
