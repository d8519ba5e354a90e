"""Build tabrank with a throttled Scorer: `import_path: loadtest.targets.throttled:build`.

A replica of the throttled Scorer runs one batch at a time. A batch takes at least `ms_per_batch`,
plus `us_per_candidate` for each of its candidates. The Scorer sleeps for most of that time, so two
replicas do twice the work of one on any machine. Therefore two cores suffice to test scaling; real
Scorers would compete for them.
"""

import asyncio
import os
from typing import Any

from ray import serve
from ray.serve import Application

from serve.config.settings import AppArgs
from serve.deployments import FeatureFetch, Ingest
from serve.deployments import Scorer as RealScorer
from serve.features.matrix import Matrix


@serve.deployment(name="Scorer")
class Throttled:
    """Scorer that runs one batch at a time and delays its answer."""

    def __init__(self, args: AppArgs, base: str, ms_per_batch: float, us_per_candidate: float) -> None:
        self._real = RealScorer.func_or_class(args, base)  # type: ignore[attr-defined]
        self._batch_s, self._candidate_s = ms_per_batch / 1e3, us_per_candidate / 1e6
        self._lock = asyncio.Lock()

    async def score(self, version: str, payload: bytes) -> bytes:
        """Return the real Scorer's scores, once the time of the batch is over."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            candidates_s = len(Matrix.from_bytes(payload).numeric) * self._candidate_s
            done_s = loop.time() + self._batch_s + candidates_s
            scores: bytes = await self._real.score(version, payload)
            await asyncio.sleep(max(0.0, done_s - loop.time()))
            return scores

    async def load(self, version: str) -> None:
        """Load a version of the model."""
        await self._real.load(version)


def build(args: dict[str, Any]) -> Application:
    """Build the application as `serve.app:build` does, with a throttled Scorer.

    `loadtest scale` adds `ms_per_batch` and `us_per_candidate` to the usual `args`.
    """
    base = os.environ.get("TABRANK_HOME", os.getcwd())
    args = dict(args)
    pace = args.pop("ms_per_batch"), args.pop("us_per_candidate")
    settings = AppArgs.from_mapping(args)
    scorer = Throttled.bind(settings, base, *pace)  # type: ignore[attr-defined]
    ingest = Ingest.bind(settings, base)  # type: ignore[attr-defined]
    # FeatureFetch would score small batches itself, and they would not be throttled.
    return FeatureFetch.bind(settings, base, scorer, ingest, is_in_process=False)  # type: ignore[attr-defined]
