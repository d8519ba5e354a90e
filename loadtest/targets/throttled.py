"""tabrank with a throttled Scorer: `import_path: loadtest.targets.throttled:build`.

A batch takes at least `ms_per_batch`, and `us_per_candidate` for each candidate, one batch at a
time per replica. The Scorer sleeps most of that time. So two replicas do twice the work of one on
any machine, and two cores suffice to test scaling; real Scorers would compete for them.
"""

import asyncio
import os
from dataclasses import dataclass, fields
from typing import Annotated, Any

from ray import serve
from ray.serve import Application

from serve.config.settings import AppArgs
from serve.contract.typed_reader import STRICT, Between, read
from serve.contract.validation import table
from serve.deployments import FeatureFetch, Ingest
from serve.deployments import Scorer as RealScorer
from serve.features.matrix import Matrix

Duration = Annotated[float, Between(0, 10_000)]


@dataclass(frozen=True)
class Pace:
    """Minimum duration of a batch."""

    __pydantic_config__ = STRICT
    ms_per_batch: Duration
    us_per_candidate: Duration

    def seconds(self, num_candidates: int) -> float:
        """Return the minimum duration of a batch with this many candidates."""
        return self.ms_per_batch / 1e3 + num_candidates * self.us_per_candidate / 1e6


@serve.deployment(name="Scorer")
class Throttled:
    """Real Scorer that runs one batch at a time, each for at least its pace."""

    def __init__(self, args: AppArgs, base: str, pace: Pace) -> None:
        self._real = RealScorer.func_or_class(args, base)  # type: ignore[attr-defined]
        self._pace = pace
        self._lock = asyncio.Lock()

    async def score(self, version: str, payload: bytes) -> bytes:
        """Return the real Scorer's scores, delayed."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            done_s = loop.time() + self._pace.seconds(len(Matrix.from_bytes(payload).numeric))
            scores: bytes = await self._real.score(version, payload)
            await asyncio.sleep(max(0.0, done_s - loop.time()))
            return scores

    async def load(self, version: str) -> None:
        """Load a version."""
        await self._real.load(version)


def build(args: dict[str, Any]) -> Application:
    """Build as `serve.app:build`, from its `args` and those of the pace."""
    base = os.environ.get("TABRANK_HOME", os.getcwd())
    names = [field.name for field in fields(Pace)]
    table(args, "args", [*(field.name for field in fields(AppArgs)), *names])
    pace = read(Pace, {key: value for key, value in args.items() if key in names}, "args")
    settings = AppArgs.from_mapping({key: value for key, value in args.items() if key not in names})
    scorer = Throttled.bind(settings, base, pace)  # type: ignore[attr-defined]
    ingest = Ingest.bind(settings, base)  # type: ignore[attr-defined]
    # Scored beside the features, small batches would have no pace.
    return FeatureFetch.bind(settings, base, scorer, ingest, is_near=False)  # type: ignore[attr-defined]
