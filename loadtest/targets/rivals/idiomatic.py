"""Ray Serve as its own guide composes a model service: a FastAPI ingress, and a scorer behind `@serve.batch`.

Run as `python -m loadtest.targets.rivals.idiomatic PORT FOLDER` it starts a Ray cluster of its own, serves until
SIGTERM and ends it again. Everything is Serve's default (proxy, one replica each, access log) but for two things
that the guide itself tells to change, named below, and one that a shared machine asks for: Ray runs its workers at
nice 15, behind the load generator on the same cores; the environment that starts this file sets 0, as tabrank has it.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of a class that Ray has pickled.
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

# The guide: raise it for code that is async (the default of 5 would keep batches at 5), and at least to the batch size.
MAX_ONGOING = 100
app = FastAPI(title="spaces")


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
class Scorer:
    """The model, one call a batch."""

    def __init__(self) -> None:
        self._version, self._scorer = promoted_model(work_folder())

    # The guide's own wait; 16 requests are 880 candidates, where a larger batch scores hardly faster.
    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
    async def score(self, matrices: list[Matrix]) -> list[tuple[str, Floats]]:
        """The version and the probabilities `[C]` of each request's matrix."""
        scores = self._scorer.score(
            np.concatenate([matrix.numeric for matrix in matrices]),
            np.concatenate([matrix.category for matrix in matrices]),
        )
        ends = np.cumsum([len(matrix.numeric) for matrix in matrices])[:-1]
        return [(self._version, part) for part in np.split(scores, ends)]


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
@serve.ingress(app)
class Ranking:
    """The HTTP ingress: validates, reads, computes features, asks `Scorer`, answers."""

    def __init__(self, scorer: DeploymentHandle) -> None:
        self._scorer = scorer
        self._reader = Reader(work_folder())

    @app.post("/v1/rank", response_model=RankAnswer)
    async def rank(self, request: RankRequest) -> dict[str, Any]:
        """Rank one request."""
        begun = time.perf_counter()
        matrix, ended = self._reader.read(
            request.viewer, request.candidates, request.context, int(time.time() * 1e3)
        )
        version, scores = await self._scorer.score.remote(matrix)
        return answer(request, version, order(scores, ended), begun)


def main(port: int, temp: Path) -> None:
    """Serve on a port of 127.0.0.1 until SIGTERM; sockets and logs go to the new folder `temp`."""
    temp.mkdir(mode=0o700)
    try:
        ray.init(
            address="local",  # never a cluster that happens to run here
            num_cpus=max(2, os.cpu_count() or 1),  # each of the two replicas asks for one
            include_dashboard=False,
            log_to_driver=False,  # as after `serve deploy`: no terminal follows the replicas' logs
            _temp_dir=str(temp),
        )
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # ray.init() has put its own
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        ranking = Ranking.bind(Scorer.bind())  # type: ignore[attr-defined]
        serve.run(ranking, name="spaces", route_prefix="/")
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
