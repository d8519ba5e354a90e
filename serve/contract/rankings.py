"""The bodies of the HTTP API, and their strict decoding."""

from __future__ import annotations

import random
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

MAX_CANDIDATES = 1_000
MAX_ID_CHARACTERS = 256
# Limit a category and each member of a set, and the members of a set in a request. A surface keeps
# at most 256 members, and no more than the field's `max`.
MAX_FIELD_CHARACTERS = 256
MAX_SET_MEMBERS = 256
MAX_NUMBER = 1e30  # features are float32 in the end
MAX_MS = 2**53  # what JSON's readers agree on
MAX_BODY_BYTES = 2 * 1024 * 1024  # a thousand of the longest ids, with room for fields

Id = Annotated[
    str, Meta(min_length=1, max_length=MAX_ID_CHARACTERS, description="An id, 1 to 256 characters.")
]
Degraded = Literal[
    "store_unavailable",
    "scorer_unavailable",
    "no_model",
    "deadline",
    "non_finite_score",
    "stale_features",
    "kill_switch",
    "overload",
]
Rung = Literal["full", "partial", "fallback"]


class Candidate(Struct, forbid_unknown_fields=True):
    """A candidate with fields that the surface lets a request state."""

    candidate: Id
    fields: dict[str, Any] = {}


class RankRequest(Struct, forbid_unknown_fields=True):
    """What to rank, and for whom."""

    viewer: Annotated[Id | None, Meta(description="Who the ranking is for; null is an anonymous viewer.")]
    candidates: Annotated[
        list[Id | Candidate], Meta(max_length=MAX_CANDIDATES, description="What may be shown; no id twice.")
    ]
    limit: Annotated[int, Meta(ge=1, le=MAX_MS, description="How many to answer; default all.")] | None = None
    context: Annotated[dict[str, Any], Meta(description="The context fields of the surface.")] = {}
    request_id: Annotated[
        Id | None, Meta(description="Wins over X-Request-Id; minted where neither is given.")
    ] = None
    explain: Annotated[bool, Meta(description="Answer each candidate's feature values.")] = False
    traffic: Annotated[Literal["live", "test"], Meta(description="Test traffic is never trained on.")] = (
        "live"
    )
    now_ms: (
        Annotated[
            int, Meta(ge=0, le=2**53, description="The time of the ranking; with the event clock only.")
        ]
        | None
    ) = None


class Ranked(Struct):
    """A candidate in its place."""

    candidate: str
    score: Annotated[float | None, Meta(description="P(label), or null where the model did not score.")]
    position: Annotated[int, Meta(ge=1)]
    features: dict[str, Any] | UnsetType = UNSET


class Timing(Struct):
    """Where the time went, in milliseconds."""

    queue: float
    features: float
    score: float
    total: float


class RankAnswer(Struct):
    """The ranking, and how it came about."""

    request_id: str
    surface: str
    experiment: Annotated[str | None, Meta(description="In which the viewer takes part; null for none.")]
    arm: Annotated[str, Meta(description="The arm that ranked: the one to which the viewer is assigned.")]
    model: Annotated[str | None, Meta(description="The artifact that scored; null where none did.")]
    rung: Annotated[Rung, Meta(description="What was delivered.")]
    degraded: Annotated[list[Degraded], Meta(description="Why it is not what was assigned.")]
    unknown_viewer: Annotated[bool, Meta(description="Looked up and not found; false where not looked up.")]
    unknown_candidates: list[str]
    freshness_ms: Annotated[
        float | None, Meta(description="Age of the live table; null before its first read.")
    ]
    timing_ms: Timing
    ranking: list[Ranked]


class Problem(Struct, omit_defaults=True):
    """An error, as RFC 9457 `application/problem+json`."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    pointer: str | None = None
    request_id: str | None = None


def new_request_id() -> str:
    """An id for a request whose client gave none. No secret: the system's generator costs ten times as much."""
    return f"{random.getrandbits(128):032x}"


def candidate_ids(request: RankRequest) -> list[str]:
    """The ids, in the order given; the request's own list where it states no fields."""
    candidates = request.candidates
    if set(map(type, candidates)) <= {str}:
        return candidates  # type: ignore[return-value]
    return [c if isinstance(c, str) else c.candidate for c in candidates]


def stated_fields(request: RankRequest) -> dict[int, dict[str, Any]]:
    """The fields that the request states itself, by the candidate's place."""
    return {i: c.fields for i, c in enumerate(request.candidates) if isinstance(c, Candidate) and c.fields}
