"""tabrank with a slower Scorer: `import_path: loadtest.targets.throttled:build`.

A batch takes at least `ms_per_batch` and `us_per_candidate` for each candidate, one batch at a time a replica, and
sleeps through most of that. So two replicas do twice the work of one on any machine, and scaling can be proven on
two cores, where more of the real ones would only take turns.
"""

import asyncio
import os
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve import Application

from serve.config.settings import ARGS, AppArgs
from serve.contract.validation import number, table
from serve.deployments import FeatureFetch, Ingest
from serve.deployments import Scorer as RealScorer
from serve.features.matrix import Matrix

PACE = ("ms_per_batch", "us_per_candidate")


@dataclass(frozen=True)
class Pace:
    """How long a batch takes at least."""

    ms_per_batch: float
    us_per_candidate: float

    def seconds(self, num_candidates: int) -> float:
        """Of a batch of so many candidates."""
        return self.ms_per_batch / 1e3 + num_candidates * self.us_per_candidate / 1e6


@serve.deployment(name="Scorer")
class Throttled:
    """The real Scorer, one batch at a time, none sooner than its pace."""

    def __init__(self, args: AppArgs, base: str, pace: Pace) -> None:
        self._real = RealScorer.func_or_class(args, base)  # type: ignore[attr-defined]
        self._pace = pace
        self._turn = asyncio.Lock()

    async def score(self, version: str, payload: bytes) -> bytes:
        """As the real one's, later."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            done_s = loop.time() + self._pace.seconds(len(Matrix.from_bytes(payload).numeric))
            scores: bytes = await self._real.score(version, payload)
            await asyncio.sleep(max(0.0, done_s - loop.time()))
            return scores

    async def load(self, version: str) -> None:
        """Have a version ready."""
        await self._real.load(version)


def build(args: dict[str, Any]) -> Application:
    """As `serve.app:build`, from its `args` and the pace's."""
    base = os.environ.get("TABRANK_HOME", os.getcwd())
    table(dict(args), "args", (*ARGS, *PACE), PACE)
    pace = Pace(**{name: number(args[name], f"args.{name}", 0, 10_000) for name in PACE})
    settings = AppArgs.from_mapping({key: value for key, value in args.items() if key not in PACE}, "args")
    scorer = Throttled.bind(settings, base, pace)  # type: ignore[attr-defined]
    ingest = Ingest.bind(settings, base)  # type: ignore[attr-defined]
    return FeatureFetch.bind(settings, base, scorer, ingest)  # type: ignore[attr-defined]
