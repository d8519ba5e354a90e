"""Rival: plain FastAPI on uvicorn, one worker per core, each with the model in its process.

It shows what careful code reaches without a serving framework. This command runs it on two cores:

    uvicorn loadtest.targets.rival:app --workers 2 --no-access-log --loop uvloop --http httptools

Store reads, features and scorer are tabrank's own code, and the request bodies are checked in the
same way, so that a comparison measures only the serving around them. A request stays in one
process.

The handler is an `async def` that does the work inline, which takes 1.0 ms of CPU per request of 55
candidates. FastAPI would run a plain `def` in a thread. That takes 1.5 ms for one request at a
time, and 2.1 ms for each of sixteen at once.
"""

import gc
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from serve.features.matrix import Features, Matrix
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.model.artifact import current
from serve.model.scorers import load_scorer
from serve.stores.candidate_table import CandidateTable
from serve.stores.factory import open_store

# Environment variable that names the folder of the store and the models.
WORK = "TABRANK_RIVAL_WORK"
Id = Annotated[str, Field(min_length=1, max_length=256)]


class RankRequest(BaseModel):
    """Request to rank candidates for a viewer."""

    model_config = ConfigDict(extra="forbid")

    viewer: Id | None
    candidates: Annotated[list[Id], Field(max_length=1000)]
    limit: Annotated[int, Field(ge=1)] | None = None
    context: dict[str, Any] = {}
    request_id: Id | None = None
    traffic: Literal["live", "test"] = "live"

    @field_validator("candidates")
    @classmethod
    def _each_once(cls, candidates: list[str]) -> list[str]:
        if len(set(candidates)) != len(candidates):
            raise ValueError("a candidate occurs twice; list each once")
        return candidates


class Ranked(BaseModel):
    """Ranked candidate; `position` counts from 1."""

    candidate: str
    score: float | None
    position: int


class RankAnswer(BaseModel):
    """Ranking, with the version of its model and the duration of the request."""

    request_id: str
    model: str
    rung: Literal["full"] = "full"
    timing_ms: float
    ranking: list[Ranked]


class Reader:
    """Reader of the features of a request, for the surface `spaces`. Each process has one.

    As in tabrank, the live candidates are in memory. One read of the embedded store returns the
    viewer, and the candidates that changed since the last read.
    """

    def __init__(self, work: Path) -> None:
        surface = load_surface("spaces")
        self._schema = Schema(surface)
        self._features = Features(self._schema)
        open_reader = partial(
            open_store, "lmdb:store", surface.name, self._schema.fingerprint, base=work, writable=False
        )
        self._live = CandidateTable(self._schema, open_reader)
        # Read now, so that the first request does not wait for the whole table.
        self._live.read([])

    def read(self, request: RankRequest) -> tuple[Matrix, NDArray[np.int64]]:
        """Return the matrix of a request's C candidates, and the standing [C] of each.

        A standing is 0 for a live candidate, 1 for one that has ended, and 2 for an unknown one.
        """
        viewer, now_ms = request.viewer, int(time.time() * 1e3)
        packed = next(iter(self._live.read([] if viewer is None else [viewer])), None)
        numbers = self._live.rows.find(request.candidates)
        rows = self._live.rows.table.take(numbers)
        viewers = (
            self._schema.blank("viewer") if packed is None else np.frombuffer(packed, self._schema.viewer)
        )
        matrix = self._features.compute(
            viewers,
            rows,
            self._schema.context_rows([request.context]),
            np.zeros(len(rows), np.int64),
            np.array([now_ms], np.int64),
            self._live.rows.values_of(numbers),
        )
        return matrix, (rows["ends_ms"] <= now_ms) + 2 * (numbers == 0)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the store and load the model before the first request."""
    work = Path(os.environ[WORK])
    version = current(work / "models")
    if version is None:
        raise FileNotFoundError(f"{work}/models: no model is promoted; publish one first")
    app.state.reader, app.state.version = Reader(work), version
    app.state.scorer = load_scorer(work / "models" / version, "onnx")
    gc.collect()
    gc.freeze()
    # Tabrank's replicas have the same thresholds.
    gc.set_threshold(50_000, 50, 100)
    yield


app = FastAPI(title="spaces", lifespan=lifespan)


@app.post("/v1/rank", response_model=RankAnswer)
async def rank(request: RankRequest, http: Request) -> dict[str, Any]:
    """Rank the candidates of one request by their scores, best first.

    Candidates with equal scores keep the order of the request. Ended candidates follow after all
    others, and unknown ones come last.

    The result is a plain dict, which FastAPI validates and encodes in Rust. To make 55 objects of a
    model class would take 60 µs more.
    """
    begun, state = time.perf_counter(), http.app.state
    matrix, standing = state.reader.read(request)
    scores = state.scorer.score(matrix.numeric, matrix.category)[:, 0]
    places = np.lexsort((-scores, standing)).tolist()[: request.limit]
    names, values, over = request.candidates, scores.tolist(), standing.tolist()
    return {
        "request_id": request.request_id or uuid.uuid4().hex,
        "model": state.version,
        "timing_ms": round((time.perf_counter() - begun) * 1e3, 3),
        "ranking": [
            {"candidate": names[i], "score": None if over[i] else values[i], "position": position}
            for position, i in enumerate(places, 1)
        ],
    }
