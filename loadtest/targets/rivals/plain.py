"""Rival: plain FastAPI on uvicorn, one worker per core, each with the model in its process.

It shows what careful code reaches without a serving framework. As a command, on two cores:

    uvicorn loadtest.targets.rivals.plain:app --workers 2 --no-access-log \\
        --loop uvloop --http httptools

A request stays in one process. The handler is `async def` with the work inline: 1.0 ms of
CPU per request of 55 candidates. As a plain `def`, which FastAPI runs in a thread, it takes 1.5 ms
alone and 2.1 ms with sixteen requests at once.
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
    """Load store and model before the first request."""
    work = work_folder()
    app.state.reader = Reader(work)
    app.state.version, app.state.scorer = promoted_model(work)
    gc.collect()
    gc.freeze()
    # The same thresholds as in tabrank's replicas.
    gc.set_threshold(50_000, 50, 100)
    yield


app = FastAPI(title="spaces", lifespan=lifespan)


@app.post("/v1/rank", response_model=RankAnswer)
async def rank(request: RankRequest, http: Request) -> dict[str, Any]:
    """Rank one request."""
    begun = time.perf_counter()
    state = http.app.state
    matrix, ended = state.reader.read(request)
    scores = state.scorer.score(matrix.numeric, matrix.category)
    return answer(request, state.version, order(scores, ended), begun)
