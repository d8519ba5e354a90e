"""Wire types of `/v1/rank` and of errors, with their limits."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

MAX_CANDIDATES = 1_000
MAX_ID_CHARACTERS = 256
# Limit a category and each member of a set, and the members of a set in a request. A surface keeps
# at most 256 members, and no more than the field's `max`.
MAX_FIELD_CHARACTERS = 256
MAX_SET_MEMBERS = 256
# Features become float32, whose largest value is 3.4e38.
MAX_NUMBER = 1e30
# Every JSON reader represents integers up to this one exactly.
MAX_MS = 2**53
# Enough for 1,000 ids of the greatest length, with room for fields.
MAX_BODY_BYTES = 2 * 1024 * 1024
# Descriptions for the OpenAPI document.
LIMIT = (
    "How many items to return: as many as the viewer sees. The default is all. Each counts as an impression, "
    "unless the surface has `impression` events."
)
REASONS = (
    "With `explain`: the features that moved the candidate most, largest first; null if none were computed."
)
SCORE = (
    "The utility: the sum of weight times prediction over the outcomes, provided that the viewer looks at the "
    "candidate. With one outcome of weight 1 it is the outcome's probability. Null if the candidate was not "
    "scored, such as an ended one."
)
PREDICTIONS = (
    "The expected amount of each outcome, provided that the viewer looks at the candidate, in the outcome's "
    "unit: events, minutes, or the unit of a sum. Null if the candidate was not scored. Left out if the "
    "surface has only one outcome."
)
PINS = (
    "Candidates that get a fixed position, whatever they are worth. The rules of the arm, such as at most one "
    "room of a host in four, count them too."
)
MOVED = (
    "What moved the candidate; null if it stayed in its place. Only with `explain`, if the arm has rules or the "
    "request has pins."
)
UNKNOWN = "Ids without a stored record or stated fields. They come last, unless the surface scores them."
TRAFFIC = "The default is live. Rankings of test traffic count no impressions, and training ignores them."
REQUEST_ID = "Overrides X-Request-Id; generated if neither is given."
NOW_MS = "Time of the ranking; only with the event clock."
FRESHNESS_MS = "Age of the live table; null before its first read."
RULES = "The rules that moved it, in words. Empty if only others were moved, or if the order was drawn."
ADDS = "What the value adds to the score: in log-odds of a probability, or in units of the utility."
EXPLAIN = '`true` returns feature values and reasons, `"reasons"` only reasons. The default is false.'
# What a request may ask to have explained about its candidates.
Explain = bool | Literal["reasons"]

Id = Annotated[
    str, Meta(min_length=1, max_length=MAX_ID_CHARACTERS, description="An id, 1 to 256 characters.")
]
# First character of the keys under which a store keeps a row for each value of a candidates' field,
# such as one for each host.
VALUE = "\0"
# The id of a viewer or candidate for which a store may keep a row.
KEPT = "An id, 1 to 256 characters of which the first is not NUL."
KeptId = Annotated[Id, Meta(description=KEPT, extra_json_schema={"pattern": r"^[^\u0000]"})]
# A position from 1. The service checks it while decoding, because msgspec does not say whose it is.
Pinned = Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": MAX_CANDIDATES})]
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
FeatureValue = float | str | list[str] | None
Rung = Literal["full", "partial", "fallback"]


class StatedCandidate(Struct, forbid_unknown_fields=True):
    """Candidate with the fields that the surface allows a request to state."""

    candidate: KeptId
    fields: dict[str, Any] = {}


class RankRequest(Struct, forbid_unknown_fields=True):
    """Body of a ranking request: the viewer and the candidates to rank."""

    viewer: Annotated[KeptId | None, Meta(description="The viewer to rank for; null is an anonymous viewer.")]
    candidates: Annotated[
        list[KeptId | StatedCandidate],
        Meta(max_length=MAX_CANDIDATES, description="Items to rank; each id once."),
    ]
    limit: Annotated[int, Meta(ge=1, le=MAX_MS, description=LIMIT)] | None = None
    pins: Annotated[dict[Id, Pinned], Meta(description=PINS)] = {}
    context: Annotated[dict[str, Any], Meta(description="The context fields of the surface.")] = {}
    request_id: Annotated[Id | None, Meta(description=REQUEST_ID)] = None
    explain: Annotated[Explain, Meta(description=EXPLAIN)] = False
    traffic: Annotated[Literal["live", "test"], Meta(description=TRAFFIC)] = "live"
    now_ms: Annotated[int, Meta(ge=0, le=MAX_MS, description=NOW_MS)] | None = None


class Reason(Struct):
    """Feature that moved a candidate, compared with the typical candidate of the same request."""

    feature: str
    label: Annotated[str, Meta(description="The feature in words for people.")]
    value: Annotated[FeatureValue, Meta(description="The candidate's value, as in `features`.")]
    typical: Annotated[FeatureValue, Meta(description="The value of the request's typical candidate.")]
    unit: Annotated[str | None, Meta(description="The unit of the values; yes/no for values of 1 and 0.")]
    contribution: Annotated[float, Meta(description=ADDS)]


class Moved(Struct):
    """Place of a candidate before rules and pins."""

    position_before: Annotated[int, Meta(ge=1, description="Its position before rules, pins and draw.")]
    rules: Annotated[list[str], Meta(description=RULES)]


class Ranked(Struct):
    """Candidate with its score and position."""

    candidate: str
    score: Annotated[float | None, Meta(description=SCORE)]
    position: Annotated[int, Meta(ge=1)]
    predictions: Annotated[dict[str, float] | None, Meta(description=PREDICTIONS)] | UnsetType = UNSET
    features: dict[str, Any] | UnsetType = UNSET
    reasons: Annotated[list[Reason] | None, Meta(description=REASONS)] | UnsetType = UNSET
    moved: Annotated[Moved | None, Meta(description=MOVED)] | UnsetType = UNSET


class Timing(Struct):
    """Duration of each stage, in milliseconds."""

    queue: float
    features: float
    score: float
    total: float


class RankAnswer(Struct):
    """Answer to a ranking request."""

    request_id: str
    surface: str
    surface_version: Annotated[str, Meta(description="First 12 digits of the SHA-256 of the surface's text.")]
    experiment: Annotated[str | None, Meta(description="The viewer's experiment; null for none.")]
    arm: Annotated[str, Meta(description="The arm that ranked: the one to which the viewer is assigned.")]
    model: Annotated[str | None, Meta(description="The version that scored; null if none scored.")]
    rung: Annotated[Rung, Meta(description="Degradation level of this answer.")]
    degraded: Annotated[list[Degraded], Meta(description="Reasons why the answer is degraded.")]
    unknown_viewer: Annotated[bool, Meta(description="True if the viewer was looked up and not found.")]
    unknown_candidates: Annotated[list[str], Meta(description=UNKNOWN)]
    freshness_ms: Annotated[float | None, Meta(description=FRESHNESS_MS)]
    timing_ms: Timing
    ranking: list[Ranked]


class Problem(Struct, omit_defaults=True):
    """Error body, RFC 9457 `application/problem+json`."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    pointer: str | None = None
    request_id: str | None = None


def new_request_id() -> str:
    """Return a new id for a request whose client gave none.

    The system draws it. Python's own generator repeats its numbers in each process that calls
    `random.seed(1)`, and a ranking with a repeated id is dropped as a duplicate.
    """
    return os.urandom(16).hex()


def candidate_ids(request: RankRequest) -> list[str]:
    """Return the ids in the given order; without stated fields this is the request's own list."""
    candidates = request.candidates
    if set(map(type, candidates)) <= {str}:
        return candidates  # type: ignore[return-value]
    return [c if isinstance(c, str) else c.candidate for c in candidates]


def stated_fields(request: RankRequest) -> dict[int, dict[str, Any]]:
    """Return the fields that the request states, by the index of the candidate."""
    return {
        i: c.fields for i, c in enumerate(request.candidates) if isinstance(c, StatedCandidate) and c.fields
    }
