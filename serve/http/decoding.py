"""Strict decoding of ranking requests."""

from __future__ import annotations

import msgspec

from serve.contract.errors import RequestError
from serve.contract.messages import below, check_kept, decoded, quoted
from serve.contract.rankings import RankRequest, StatedCandidate, candidate_ids
from serve.features.field_values import bounded, check_unit
from serve.features.surface import Surface

_decoder = msgspec.json.Decoder(RankRequest)
_FIELDS = {"": RankRequest.__struct_fields__, "/candidates": StatedCandidate.__struct_fields__}


def decode_request(body: bytes, surface: Surface, *, event_clock: bool) -> RankRequest:
    """Decode the request in `body`.

    Raises:
        RequestError: 400 for malformed JSON; 422 with a JSON Pointer for invalid values.
    """
    request = decoded(_decoder, body, _FIELDS)
    # In JSON, only an escape can write NUL. Most bodies have none, and looking takes 0.2 µs.
    if b"\\" in body:
        check_kept(request.viewer, "/viewer")
        for i, name in enumerate(candidate_ids(request)):
            check_kept(name, f"/candidates/{i}")
    _check_candidates(request, surface)
    if request.pins:
        _check_pins(request)
    for name, value in request.context.items():
        pointer = below("/context", name)
        request.context[name] = bounded(surface.fields["context"], name, value, pointer)
    if event_clock and request.now_ms is None:
        raise RequestError(422, "invalid request", "now_ms is missing; the event clock needs it", "/now_ms")
    if not event_clock and request.now_ms is not None:
        detail = "now_ms is only for the event clock; leave it out"
        raise RequestError(422, "invalid request", detail, "/now_ms")
    if request.now_ms is not None:
        check_unit(request.now_ms, "/now_ms")
    return request


def _check_pins(request: RankRequest) -> None:
    ids, taken = set(candidate_ids(request)), dict[int, str]()
    num_shown = min(request.limit or len(ids), len(ids))
    for name, position in request.pins.items():
        if name not in ids:
            detail = f"{quoted(name)} is pinned and is no candidate; list it, or leave its pin out"
        elif position < 1:
            detail = f"position {position} does not exist; the first one is 1"
        elif position > num_shown:
            detail = f"position {position} is beyond the {num_shown} that are shown; pin to one of them"
        elif (other := taken.setdefault(position, name)) != name:
            detail = f"position {position} has the pin of {quoted(other)} already; give each one of its own"
        else:
            continue
        raise RequestError(422, "invalid request", detail, below("/pins", name))


def _check_candidates(request: RankRequest, surface: Surface) -> None:
    ids = candidate_ids(request)
    if len(set(ids)) != len(ids):
        first: dict[str, int] = {}
        i = next(i for i, name in enumerate(ids) if first.setdefault(name, i) != i)
        detail = f"duplicate candidate {quoted(ids[i])}; list each once"
        raise RequestError(422, "invalid request", detail, f"/candidates/{i}")
    if ids is request.candidates:
        return
    stated = surface.stated
    for i, candidate in enumerate(request.candidates):
        if type(candidate) is StatedCandidate:
            for name, value in candidate.fields.items():
                pointer = below(f"/candidates/{i}/fields", name)
                if name not in stated and name in surface.candidate:
                    detail = (
                        f"{quoted(name)} is stored; requests may state {', '.join(stated) or 'no field'}. Send it to "
                        f"/v1/events, or declare it with request_time = true under [candidate] of the surface"
                    )
                    raise RequestError(422, "invalid request", detail, pointer)
                candidate.fields[name] = bounded(stated, name, value, pointer)
