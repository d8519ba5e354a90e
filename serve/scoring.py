"""Scoring: one replica's models by version, loaded and verified before they score. No Ray in here."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np

from serve.artifact import current
from serve.features import Matrix
from serve.scorers import Scorer, load_scorer
from serve.settings import MAX_VERSIONS, Backend

MAX_MODELS = MAX_VERSIONS + 2  # those that arms name, the promoted one and its successor


class ModelHolder:
    """Scores matrices with any published version; holds the few used last."""

    def __init__(self, models: Path, backend: Backend) -> None:
        self._models = models
        self._backend = backend
        self._held: OrderedDict[str, Scorer] = OrderedDict()

    def load(self, version: str) -> None:
        """Have a version ready; raises ArtifactRefused where it is altered or scores wrongly."""
        if version not in self._held:
            self._held[version] = load_scorer(self._models / version, self._backend)
            while len(self._held) > MAX_MODELS:
                self._held.popitem(last=False)
        self._held.move_to_end(version)

    def load_current(self) -> None:
        """Have the promoted version ready, if there is one."""
        version = current(self._models)
        if version is not None:
            self.load(version)

    def score(self, version: str, payload: bytes) -> bytes:
        """Float32 probabilities `[R]` of the matrix in `payload`, as bytes."""
        self.load(version)
        matrix = Matrix.from_bytes(payload)
        scores = self._held[version].score(matrix.numeric, matrix.category)
        return np.ascontiguousarray(scores, np.float32).tobytes()
