"""Plain FastAPI on uvicorn: one worker per core, each with the model in its process.

What a good engineer writes without a serving framework. uvicorn runs it on uvloop and httptools without an
access log, one worker a core, so that no request leaves the process that took it:

    uvicorn loadtest.targets.rivals.plain:app --workers 2 --loop uvloop --http httptools --no-access-log

The handler is `async def` with the work inline: 1.0 ms of CPU a request of 55 candidates. As a plain `def`, which
FastAPI runs in a thread, it takes 1.5 ms alone and 2.1 with sixteen at once.
"""

import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request

from loadtest.targets.rivals.bodies import RankAnswer, RankRequest, answer
from loadtest.targets.rivals.reader import Reader, order, promoted_model, work_folder


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Have store and model ready before the first request."""
    work = work_folder()
    app.state.reader = Reader(work)
    app.state.version, app.state.scorer = promoted_model(work)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)  # as tabrank's replicas have it
    yield


app = FastAPI(title="spaces", lifespan=lifespan)


@app.post("/v1/rank", response_model=RankAnswer)
async def rank(request: RankRequest, http: Request) -> dict[str, Any]:
    """Rank one request."""
    begun = time.perf_counter()
    state = http.app.state
    matrix, ended = state.reader.read(
        request.viewer, request.candidates, request.context, int(time.time() * 1e3)
    )
    scores = state.scorer.score(matrix.numeric, matrix.category)
    return answer(request, state.version, order(scores, ended), begun)
