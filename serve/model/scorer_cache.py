"""Cache of one replica's scorers by version. They are loaded and verified before they score."""

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
from serve.model.mirror import mirror_of
from serve.model.scorers import Backend, Scorer, load_scorer

# Errors that are the fault of a version. Other errors mean that the scorer cannot be reached.
ITS_OWN = (ArtifactRefused, ScoringFailed)
# Scoring time in ms, appended to the scores.
TAIL = struct.Struct("<f")
# Limits the versions that arms may name.
MAX_VERSIONS = 3
# Limits the loaded models: besides those of arms, the promoted version, the one before it, the
# canary, the shadow, and a successor.
MAX_MODELS = MAX_VERSIONS + 5


def timed(scores: bytes, took_ms: float) -> bytes:
    """Append the scoring time to float32 scores."""
    return scores + TAIL.pack(took_ms)


def untimed(answer: bytes, num_rows: int) -> tuple[NDArray[np.float32], float]:
    """Split an answer for `num_rows` rows into scores `[R, O]` and the scoring time in ms.

    Raises:
        struct.error: the answer is for other rows.
    """
    num_scores, rest = divmod(len(answer) - TAIL.size, 4)
    if rest or num_scores % max(num_rows, 1) or num_scores < num_rows:
        raise struct.error(f"{len(answer)} bytes are no scores of {num_rows} rows")
    (took_ms,) = TAIL.unpack_from(answer, 4 * num_scores)
    scores = np.frombuffer(answer, np.float32, num_scores)
    return scores.reshape(num_rows, num_scores // max(num_rows, 1)), took_ms


class ModelHolder:
    """Scores matrices with any published version; keeps the most recently used ones loaded."""

    def __init__(self, models: Path, backend: Backend) -> None:
        self._mirror = mirror_of(models)
        self._backend = backend
        self._held: OrderedDict[str, Scorer] = OrderedDict()
        self._loading = asyncio.Lock()

    def load(self, version: str) -> None:
        """Load a version; raise ArtifactRefused if it is altered or its golden scores are wrong."""
        if not self.holds(version):
            self._hold(version, self._loaded(version))

    def holds(self, version: str) -> bool:
        """Return True if a version is loaded; it then counts as the most recently used one."""
        if version not in self._held:
            return False
        self._held.move_to_end(version)
        return True

    async def prepare(self, version: str) -> None:
        """Load a version in a thread while others score; reading and verifying takes 0.1 s."""
        async with self._loading:
            if not self.holds(version):
                self._hold(version, await asyncio.to_thread(self._loaded, version))

    def load_current(self) -> None:
        """Load the promoted version, if there is one, and the canary unless it is refused."""
        with contextlib.suppress(ArtifactRefused):
            if version := pointed(self._mirror.folder, CANARY):
                self.load(version)
        if version := pointed(self._mirror.folder, CURRENT):
            self.load(version)

    def score_packed(self, version: str, payload: bytes) -> bytes:
        """Return the float32 shares `[R, O]` for the matrix in `payload`, as `timed` packs them.

        Raises:
            ArtifactRefused: the version cannot be loaded.
            ScoringFailed: the version cannot score these rows.
        """
        self.load(version)
        begun = time.perf_counter()
        matrix = Matrix.from_bytes(payload)
        try:
            scores = self._held[version].score(matrix.numeric, matrix.category)
        # Any exception here is the version's fault, not an outage.
        except Exception as error:
            raise ScoringFailed(f"version {version}: {type(error).__name__}: {error}") from error
        packed = np.ascontiguousarray(scores, np.float32).tobytes()
        return timed(packed, (time.perf_counter() - begun) * 1e3)

    def _loaded(self, version: str) -> Scorer:
        folder = self._mirror.folder / version
        if not folder.exists():
            # Another replica may have seen the version earlier than this one's mirror.
            self._mirror.pull()
        return load_scorer(folder, self._backend)

    def _hold(self, version: str, scorer: Scorer) -> None:
        self._held[version] = scorer
        while len(self._held) > MAX_MODELS:
            self._held.popitem(last=False)
