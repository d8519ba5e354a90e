"""Rival: Ray Serve as in its guide, a FastAPI ingress and a scorer behind `@serve.batch`.

    python -m loadtest.targets.rivals.idiomatic PORT FOLDER

It starts a separate Ray cluster, serves until SIGTERM and ends the cluster. Everything is Serve's
default (proxy, one replica each, access log) with three exceptions. Two are recommended by the
guide; comments mark them. The third: the environment that starts this file sets the workers' nice
level to 0, as for tabrank, since Ray's default of 15 would yield to the load generator.
"""

# No `from __future__ import annotations`: FastAPI reads annotations of a class that Ray pickled.
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from loadtest.targets.rivals.bodies import RankAnswer, RankRequest, answer
from loadtest.targets.rivals.reader import Floats, Reader, order, promoted_model, work_folder
from serve.features.matrix import Matrix

# The guide says to raise it for async code, and at least to the batch size. The default of 5 would
# limit batches to 5.
MAX_ONGOING = 100
app = FastAPI(title="spaces")


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
class Scorer:
    """Model, called once per batch."""

    def __init__(self) -> None:
        self._version, self._scorer = promoted_model(work_folder())

    # The guide's own wait. 16 requests are 880 candidates; larger batches score hardly faster.
    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def score(self, matrices: list[Matrix]) -> list[tuple[str, Floats]]:
        """Return the version and the probabilities [C] for each request's matrix."""
        scores = self._scorer.score(
            np.concatenate([matrix.numeric for matrix in matrices]),
            np.concatenate([matrix.category for matrix in matrices]),
        )
        ends = np.cumsum([len(matrix.numeric) for matrix in matrices])[:-1]
        return [(self._version, part) for part in np.split(scores, ends)]


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
@serve.ingress(app)
class Ranking:
    """HTTP ingress: validate, read, compute features, call `Scorer`, answer."""

    def __init__(self, scorer: DeploymentHandle) -> None:
        self._scorer = scorer
        self._reader = Reader(work_folder())

    @app.post("/v1/rank", response_model=RankAnswer)
    async def rank(self, request: RankRequest) -> dict[str, Any]:
        """Rank one request."""
        begun = time.perf_counter()
        matrix, ended = self._reader.read(request)
        version, scores = await self._scorer.score.remote(matrix)
        return answer(request, version, order(scores, ended), begun)


def main(port: int, temp: Path) -> None:
    """Serve on a port of 127.0.0.1 until SIGTERM; the new folder `temp` gets sockets and logs."""
    temp.mkdir(mode=0o700)
    try:
        ray.init(
            # Do not join another cluster on this machine.
            address="local",
            # Each of the two replicas requires one CPU.
            num_cpus=max(2, os.cpu_count() or 1),
            include_dashboard=False,
            # As after `serve deploy`: no terminal shows the replicas' logs.
            log_to_driver=False,
            _temp_dir=str(temp),
        )
        # Replace the handler that ray.init() installed.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        ranking = Ranking.bind(Scorer.bind())  # type: ignore[attr-defined]
        serve.run(ranking, name="spaces", route_prefix="/")
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
