"""Request and answer bodies of the rivals in pydantic, with the same checks as tabrank's API."""

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Id = Annotated[str, Field(min_length=1, max_length=256)]


class RankRequest(BaseModel):
    """Viewer and candidates to rank."""

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
    """Candidate at its position."""

    candidate: str
    score: float | None
    position: int


class RankAnswer(BaseModel):
    """Ranking, with its model and duration."""

    request_id: str
    model: str
    rung: Literal["full"] = "full"
    timing_ms: float
    ranking: list[Ranked]


def answer(
    request: RankRequest, model: str, ordered: list[tuple[int, float | None]], begun: float
) -> dict[str, Any]:
    """Return the content of a `RankAnswer`.

    `ordered` holds places and scores, best first; `begun` is the start by `time.perf_counter()`.
    The result is a plain dict, which FastAPI validates and encodes in Rust: 55 objects of a model
    class would take 60 µs more.
    """
    names = request.candidates
    return {
        "request_id": request.request_id or uuid.uuid4().hex,
        "model": model,
        "timing_ms": round((time.perf_counter() - begun) * 1e3, 3),
        "ranking": [
            {"candidate": names[place], "score": score, "position": position}
            for position, (place, score) in enumerate(ordered[: request.limit], 1)
        ],
    }
