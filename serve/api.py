"""The bodies of the HTTP API, and their strict decoding."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from serve.errors import RequestError, did_you_mean

if TYPE_CHECKING:  # the client takes its types from here, and needs no numpy
    from serve.surface import Field, Surface

MAX_CANDIDATES = 1_000
MAX_ID_CHARACTERS = 256
# Limit a category and each member of a set, and the members of a set in a request. A surface keeps
# at most 256 members, and no more than the field's `max`.
MAX_FIELD_CHARACTERS = 256
MAX_SET_MEMBERS = 256
MAX_NUMBER = 1e30  # features are float32 in the end
MAX_MS = 2**53  # what JSON's readers agree on
MAX_QUOTED = 80  # characters of a client's that an answer or a log line repeats
MAX_DETAIL = 300
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


_decoder = msgspec.json.Decoder(RankRequest)
_WANTED = {
    "number": f"a number up to {MAX_NUMBER:g}",
    "time": "a number of milliseconds",
    "category": "a string",
    "set": "strings",
}
_FIELDS = {"": RankRequest.__struct_fields__, "/candidates": Candidate.__struct_fields__}


def decode_request(body: bytes, surface: Surface, *, event_clock: bool) -> RankRequest:
    """The request in `body`.

    Raises:
        RequestError: 400 where it is no JSON, 422 with a JSON Pointer where it means nothing.
    """
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(str(error), _FIELDS) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error) from None
    _check_candidates(request, surface)
    for name, value in request.context.items():
        pointer = below("/context", name)
        request.context[name] = bounded(surface.fields["context"], name, value, pointer)
    if event_clock and request.now_ms is None:
        raise RequestError(422, "invalid request", "now_ms is missing; the event clock needs it", "/now_ms")
    if not event_clock and request.now_ms is not None:
        raise RequestError(
            422, "invalid request", "now_ms is taken with the event clock only; leave it out", "/now_ms"
        )
    return request


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


def _check_candidates(request: RankRequest, surface: Surface) -> None:
    ids = candidate_ids(request)
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        for i, name in enumerate(ids):
            if name in seen:
                raise RequestError(
                    422,
                    "invalid request",
                    f"the candidate {quoted(name)} is there twice; list each once",
                    f"/candidates/{i}",
                )
            seen.add(name)
    if ids is request.candidates:
        return
    stated = {name: field for name, field in surface.fields["candidate"].items() if field.request_time}
    for i, candidate in enumerate(request.candidates):
        if type(candidate) is Candidate:
            for name, value in candidate.fields.items():
                pointer = below(f"/candidates/{i}/fields", name)
                candidate.fields[name] = bounded(stated, name, value, pointer)


def plain(known: Mapping[str, Field], name: str, value: object, pointer: str) -> object:
    """A field's value in its one type: a float, a whole number of ms, a string or strings; null stays null.

    Raises:
        RequestError: the surface has no such field, or the value does not fit it.
    """
    field = known.get(name)
    if field is None:
        names = ", ".join(known) or "none"
        detail = f"unknown field {quoted(name)}{nearest(name, known)}; the surface takes {names} here"
        raise RequestError(422, "invalid request", detail, pointer)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if field.type == "number" and abs(value) <= MAX_NUMBER:
            return float(value)
        if field.type == "time" and abs(value) <= MAX_MS:
            return int(value)
    is_set = field.type == "set" and isinstance(value, list) and all(isinstance(v, str) for v in value)
    if is_set or (field.type == "category" and isinstance(value, str)):
        return value
    raise RequestError(422, "invalid request", f"{name!r} must be {_WANTED[field.type]} or null", pointer)


def bounded(known: Mapping[str, Field], name: str, value: object, pointer: str) -> object:
    """Return `plain`'s value of a field that a client sent; a log may hold longer ones.

    Raises:
        RequestError: the surface has no such field, or the value does not fit it, or is too long.
    """
    value = plain(known, name, value, pointer)
    members = value if isinstance(value, list) else [value]
    if len(members) > MAX_SET_MEMBERS:
        detail = f"{name!r} has {len(members)} members; a set may have {MAX_SET_MEMBERS}: send fewer"
        raise RequestError(422, "invalid request", detail, pointer)
    for i, member in enumerate(members):
        if isinstance(member, str) and len(member) > MAX_FIELD_CHARACTERS:
            at = pointer if members is not value else f"{pointer}/{i}"
            detail = (
                f"{name!r} has a string of {len(member)} characters; one may have {MAX_FIELD_CHARACTERS}: "
                "shorten it"
            )
            raise RequestError(422, "invalid request", detail, at)
    return value


def invalid(message: str, fields: Mapping[str, Sequence[str]]) -> RequestError:
    """msgspec's message, `what - at `$.path``, as a problem with a JSON Pointer.

    `fields` are what an object may hold, by the beginning of its pointer: the longest that fits is taken.
    """
    at = message.rfind(" - at `")  # the last: what is before may be a client's
    detail, path = (message[:at], message[at + 7 :]) if at >= 0 else (message, "")
    path = path.rstrip("`").replace("[...]", "")  # somewhere in it: msgspec does not say where
    pointer = re.sub(r"\[(\d+)\]", r".\1", path).removeprefix("$").replace(".", "/")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", detail, re.DOTALL)
    if unknown:
        known = fields[max((at for at in fields if pointer.startswith(at)), key=len)]
        pointer = below(pointer, unknown[1])
        detail = f"unknown field {quoted(unknown[1])}{nearest(unknown[1], known)}"
    elif len(detail) > MAX_DETAIL:
        detail = f"{detail[:MAX_DETAIL]}…"
    return RequestError(422, "invalid request", detail, pointer)


def malformed(error: Exception) -> RequestError:
    """The refusal of what is no JSON, or is nested more deeply than any reader follows."""
    if isinstance(error, RecursionError):
        return RequestError(400, "malformed JSON", "the body is nested too deeply")
    return RequestError(400, "malformed JSON", f"the body is not valid JSON: {error}")


def quoted(text: str) -> str:
    """What a client wrote, to be repeated to it: short, and with its control characters written out."""
    return repr(text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest valid name, or nothing."""
    if len(name) > MAX_QUOTED:  # no slip of a name, and long to compare: a megabyte would take a second
        return ""
    hint = did_you_mean(name, known)
    return f"; {hint}" if hint else ""


def below(pointer: str, name: str) -> str:
    """A JSON Pointer to what an object holds under a name; to the object itself where the name is endless."""
    if len(name) > MAX_ID_CHARACTERS:
        return pointer
    return f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
