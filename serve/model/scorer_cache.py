"""Scoring: one replica's models by version, loaded and verified before they score. No Ray in here."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.contract.errors import ArtifactRefused, ScoringFailed
from serve.features.matrix import Matrix
from serve.model.artifact import CANARY, CURRENT, pointed
from serve.model.scorers import Backend, Scorer, load_scorer

TAIL = struct.Struct("<f")  # ms
MAX_VERSIONS = 3  # that arms may name: a Scorer holds these, the promoted one and its successor


# those that arms name, the promoted one, the one before it, the canary, the shadow, and one that is to replace them
MAX_MODELS = MAX_VERSIONS + 5


def timed(scores: bytes, took_ms: float) -> bytes:
    """Float32 scores with their time."""
    return scores + TAIL.pack(took_ms)


def untimed(answer: bytes, num_rows: int) -> tuple[NDArray[np.float32], float | None]:
    """The scores in an answer for so many rows, and their time where the scorer tells it."""
    if len(answer) == 4 * num_rows + TAIL.size:
        return np.frombuffer(answer, np.float32, num_rows), float(TAIL.unpack_from(answer, 4 * num_rows)[0])
    return np.frombuffer(answer, np.float32), None


class ModelHolder:
    """Scores matrices with any published version; holds the few used last."""

    def __init__(self, models: Path, backend: Backend) -> None:
        self._models = models
        self._backend = backend
        self._held: OrderedDict[str, Scorer] = OrderedDict()
        self._loading = asyncio.Lock()

    def load(self, version: str) -> None:
        """Have a version ready; raises ArtifactRefused where it is altered or scores wrongly."""
        if version not in self._held:
            self._hold(version, self._loaded(version))
        self._held.move_to_end(version)

    async def prepare(self, version: str) -> None:
        """As `load`, while others go on scoring: reading it and scoring its golden rows take a tenth of a second."""
        async with self._loading:
            if version not in self._held:
                self._hold(version, await asyncio.to_thread(self._loaded, version))
            self._held.move_to_end(version)

    def load_current(self) -> None:
        """Have the promoted version ready, if there is one, and the canary where it is well."""
        with contextlib.suppress(ArtifactRefused):
            if version := pointed(self._models, CANARY):
                self.load(version)
        if version := pointed(self._models, CURRENT):
            self.load(version)

    def score(self, version: str, payload: bytes) -> bytes:
        """Float32 probabilities `[R]` of the matrix in `payload`, as bytes.

        Raises:
            ArtifactRefused: the version cannot be loaded.
            ScoringFailed: it cannot score these rows.
        """
        self.load(version)
        matrix = Matrix.from_bytes(payload)
        try:
            scores = self._held[version].score(matrix.numeric, matrix.category)
        except Exception as error:  # ONNX Runtime's, torch's or ours: the version's fault, and no outage
            raise ScoringFailed(f"version {version}: {type(error).__name__}: {error}") from error
        return np.ascontiguousarray(scores, np.float32).tobytes()

    def score_timed(self, version: str, payload: bytes) -> bytes:
        """As `score`, with the time that it took (`serve.model.scorer_cache`)."""
        self.load(version)
        begun = time.perf_counter()
        scores = self.score(version, payload)
        return timed(scores, (time.perf_counter() - begun) * 1e3)

    def _loaded(self, version: str) -> Scorer:
        return load_scorer(self._models / version, self._backend)

    def _hold(self, version: str, scorer: Scorer) -> None:
        self._held[version] = scorer
        while len(self._held) > MAX_MODELS:
            self._held.popitem(last=False)
