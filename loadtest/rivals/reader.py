"""What both rivals do for a request before it is scored: tabrank's own store reads and feature code.

Like tabrank they hold the live candidates in memory and pull the store's changes five times a second, and read
the viewer from the embedded store at each request. So what is compared is the serving around it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.artifact import current
from serve.features import Features, Matrix
from serve.scorers import Scorer, load_scorer
from serve.state import Rows, Schema
from serve.stores.opening import open_store
from serve.surface import load_surface

WORK = "TABRANK_RIVAL_WORK"  # the environment variable that names the folder of store and models
PULL_S = 0.2
Floats = NDArray[np.float32]


class Reader:
    """The live table, the viewers' store and the features of the surface `spaces`; one to a process."""

    def __init__(self, work: Path) -> None:
        surface = load_surface("spaces")
        self._schema = Schema(surface)
        self._features = Features(self._schema)
        self._live = Rows(self._schema, "candidate")
        self._store = open_store(
            "lmdb:store", surface.name, self._schema.fingerprint, base=work, writable=False
        )
        self._seq = 0
        self.pull()

    def pull(self) -> None:
        """Bring the live table up to the store."""
        if self._store.seq() != self._seq:
            changes = self._store.changes(self._seq)
            self._live.apply(changes.rows)
            self._seq = changes.seq

    async def pull_forever(self) -> None:
        """Keep the live table fresh, until cancelled."""
        while True:
            await asyncio.sleep(PULL_S)
            self.pull()

    def read(
        self, viewer: str | None, candidates: Sequence[str], context: Mapping[str, Any], now_ms: int
    ) -> tuple[Matrix, NDArray[np.bool_]]:
        """The matrix `[C]` of one request, and which of its candidates have ended `[C]`."""
        rows = self._live.table.take(self._live.find(candidates))
        packed = None if viewer is None else self._store.viewers([viewer])[0]
        viewers = (
            self._schema.blank("viewer") if packed is None else np.frombuffer(packed, self._schema.viewer)
        )
        matrix = self._features.compute(
            viewers,
            rows,
            self._schema.context_rows([context]),
            np.zeros(len(candidates), np.int64),
            np.array([now_ms], np.int64),
        )
        return matrix, rows["ends_ms"] <= now_ms


def order(scores: Floats, ended: NDArray[np.bool_]) -> list[tuple[int, float | None]]:
    """Places and scores, best first; what has ended comes last, without a score. Ties stay as given."""
    places = np.lexsort((-scores, ended)).tolist()
    values, over = scores.tolist(), ended.tolist()
    return [(place, None if over[place] else values[place]) for place in places]


def work_folder() -> Path:
    """The folder that holds `store/` and `models/`."""
    return Path(os.environ[WORK])


def promoted_model(work: Path) -> tuple[str, Scorer]:
    """The promoted version, and ONNX Runtime ready to score with it, as tabrank's `Scorer` holds it."""
    version = current(work / "models")
    if version is None:
        raise FileNotFoundError(f"{work}/models: no model is promoted; publish one first")
    return version, load_scorer(work / "models" / version, "onnx")
