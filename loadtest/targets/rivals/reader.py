"""What both rivals do for a request before it is scored: tabrank's own store reads and feature code.

Like tabrank they hold the live candidates in memory, and one read of the embedded store brings the viewer and what
changed among the candidates since the read before. So what is compared is the serving around it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.matrix import Features, Matrix
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.model.artifact import current
from serve.model.scorers import Scorer, load_scorer
from serve.ranking.candidate_table import LiveTable
from serve.stores.factory import open_store

WORK = "TABRANK_RIVAL_WORK"  # the environment variable that names the folder of store and models
Floats = NDArray[np.float32]


class Reader:
    """The live table, the viewers' store and the features of the surface `spaces`; one to a process."""

    def __init__(self, work: Path) -> None:
        surface = load_surface("spaces")
        self._schema = Schema(surface)
        self._features = Features(self._schema)
        open_reader = partial(
            open_store, "lmdb:store", surface.name, self._schema.fingerprint, base=work, writable=False
        )
        self._live = LiveTable(self._schema, open_reader)
        self._live.read([])  # here, or the first request would wait for all of it

    def read(
        self, viewer: str | None, candidates: Sequence[str], context: Mapping[str, Any], now_ms: int
    ) -> tuple[Matrix, NDArray[np.bool_]]:
        """The matrix `[C]` of one request, and which of its candidates have ended `[C]`."""
        packed = next(iter(self._live.read([] if viewer is None else [viewer])), None)
        rows = self._live.rows.table.take(self._live.rows.find(candidates))
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
