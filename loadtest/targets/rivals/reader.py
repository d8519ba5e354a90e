"""Store reads and features of both rivals, with tabrank's own code.

As in tabrank, the live candidates are in memory, and one read of the embedded store returns the
viewer and the changes of candidates since the last read. So a comparison measures only the serving
around it.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtest.targets.rivals.bodies import RankRequest
from serve.features.matrix import Features, Matrix
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.model.artifact import current
from serve.model.scorers import Scorer, load_scorer
from serve.stores.candidate_table import CandidateTable
from serve.stores.factory import open_store

# Environment variable with the folder of store and models.
WORK = "TABRANK_RIVAL_WORK"
Floats = NDArray[np.float32]


class Reader:
    """Live table, viewer store and features of the surface `spaces`; one per process."""

    def __init__(self, work: Path) -> None:
        surface = load_surface("spaces")
        self._schema = Schema(surface)
        self._features = Features(self._schema)
        open_reader = partial(
            open_store, "lmdb:store", surface.name, self._schema.fingerprint, base=work, writable=False
        )
        self._live = CandidateTable(self._schema, open_reader)
        # Read now, so that the first request does not wait for the whole table.
        self._live.read([])

    def read(self, request: RankRequest) -> tuple[Matrix, NDArray[np.bool_]]:
        """Return the matrix [C] of one request, and a mask [C] of its ended candidates."""
        viewer, now_ms = request.viewer, int(time.time() * 1e3)
        packed = next(iter(self._live.read([] if viewer is None else [viewer])), None)
        rows = self._live.rows.table.take(self._live.rows.find(request.candidates))
        viewers = (
            self._schema.blank("viewer") if packed is None else np.frombuffer(packed, self._schema.viewer)
        )
        matrix = self._features.compute(
            viewers,
            rows,
            self._schema.context_rows([request.context]),
            np.zeros(len(rows), np.int64),
            np.array([now_ms], np.int64),
        )
        return matrix, rows["ends_ms"] <= now_ms


def order(scores: Floats, ended: NDArray[np.bool_]) -> list[tuple[int, float | None]]:
    """Return places and scores, best first, with ties in the given order.

    Ended candidates come last, without a score.
    """
    places = np.lexsort((-scores, ended)).tolist()
    values, over = scores.tolist(), ended.tolist()
    return [(place, None if over[place] else values[place]) for place in places]


def work_folder() -> Path:
    """Return the folder that holds `store/` and `models/`."""
    return Path(os.environ[WORK])


def promoted_model(work: Path) -> tuple[str, Scorer]:
    """Return the promoted version, and its ONNX Runtime scorer as in tabrank's `Scorer`."""
    version = current(work / "models")
    if version is None:
        raise FileNotFoundError(f"{work}/models: no model is promoted; publish one first")
    return version, load_scorer(work / "models" / version, "onnx")
