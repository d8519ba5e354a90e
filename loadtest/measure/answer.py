"""What an answer is worth: its outcome, and how many of its candidates or records count."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Outcome(NamedTuple):
    """How a request ended: `name` is the rung of an answer that is `ok`, else the kind of error.

    `full`: the rung was full and a model, not a heuristic, made the ranking.
    """

    name: str
    ok: bool
    full: bool = False


class _Place(msgspec.Struct, gc=False):
    score: float | None


class _Answer(msgspec.Struct, gc=False):
    """The three fields that a verdict needs. Decoding them from 55 candidates (4.2 kB) costs 5.7 µs of CPU,
    counting the scores 1.7 µs: 0.7 % of a core at 900 answers a second, so every answer is read."""

    rung: str
    model: str | None
    ranking: list[_Place]


class Refused(msgspec.Struct, gc=False):
    """A record that the service did not take, and why."""

    pointer: str
    detail: str


class Acknowledgement(msgspec.Struct, gc=False):
    """What POST /v1/events answers."""

    accepted: int
    duplicates: int
    rejected: list[Refused]


_decode = msgspec.json.Decoder(_Answer).decode
decode_acknowledgement = msgspec.json.Decoder(Acknowledgement).decode


def read_answer(status: int, body: bytes, num_candidates: int) -> tuple[Outcome, int]:
    """The outcome of an answered request, and the number of candidates that count as scored by the model.

    An answer that is not as documented, or ranks another number of candidates than was asked, is an error.
    """
    if status != 200:
        return Outcome(f"HTTP {status}", ok=False), 0
    try:
        answer = _decode(body)
    except msgspec.MsgspecError:
        return Outcome("unreadable answer", ok=False), 0
    if len(answer.ranking) != num_candidates:
        return Outcome("wrong number of candidates", ok=False), 0
    full = answer.rung == "full" and answer.model is not None
    scored = sum(place.score is not None for place in answer.ranking) if full else 0
    return Outcome(answer.rung, ok=True, full=full), scored


def read_acknowledgement(status: int, body: bytes, num_records: int) -> tuple[Outcome, int]:
    """The outcome of posted records, whose ids are all new, and how many of them the service took."""
    if status != 200:
        return Outcome(f"HTTP {status}", ok=False), 0
    try:
        accepted = decode_acknowledgement(body).accepted
    except msgspec.MsgspecError:
        return Outcome("unreadable answer", ok=False), 0
    if accepted != num_records:
        return Outcome("records refused", ok=False), accepted
    return Outcome("accepted", ok=True), accepted


class Ended(NamedTuple):
    """A request that ended: due at `at_s` of the run, sent `late_ms` and ended `latency_ms` after that."""

    at_s: float
    late_ms: float
    latency_ms: float
    outcome: Outcome
    scored: int
    num_bytes: int
