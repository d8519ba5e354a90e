"""Build the parts of error messages: quoted input and JSON Pointers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from serve.contract.errors import RequestError, did_you_mean
from serve.contract.rankings import MAX_ID_CHARACTERS, VALUE
from serve.contract.validation import MILLISECONDS

T = TypeVar("T")
# Limits on the characters of client input, and of a whole detail, that an answer or a log line
# repeats.
MAX_QUOTED = 80
MAX_DETAIL = 300
# What msgspec writes of types and bounds, and what a message says instead. For example, "Expected
# `array` of length <= 10" becomes "Expected an array with a length of at most 10".
WORDS = {"int": "a whole number", "float": "a number", "str": "a string", "bool": "true or false", "`": ""}
WORDS |= {"array": "an array", "object": "an object", "|": "or", "of": "with a"}
WORDS |= {">=": "of at least", "<=": "of at most"}


def invalid(message: str, fields: Mapping[str, Sequence[str]]) -> RequestError:
    """Convert msgspec's message, `what - at `$.path``, into an error with a JSON Pointer.

    `fields` maps the prefix of a pointer to the fields that the object there may hold. The longest
    prefix that matches is used.
    """
    # Search from the end: the text before may contain client input.
    at = message.rfind(" - at `")
    # For the key of an object msgspec writes `key` in `$.path`.
    detail, path = (message[:at], message[message.find("$", at) :]) if at >= 0 else (message, "")
    # msgspec writes [...] for an element whose place it does not report.
    path = path.rstrip("`").replace("[...]", "")
    pointer = re.sub(r"\[(\d+)\]", r".\1", path).removeprefix("$").replace(".", "/")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", detail, re.DOTALL)
    if unknown:
        known = fields[max((at for at in fields if pointer.startswith(at)), key=len)]
        pointer = below(pointer, unknown[1])
        hint = did_you_mean(unknown[1], known) or f"; the fields are {', '.join(known)}"
        detail = f"unknown field {quoted(unknown[1])}{hint}"
    elif len(detail) > MAX_DETAIL:
        detail = f"{detail[:MAX_DETAIL]}…"
    elif pointer == "/explain":
        detail = f'{detail}; write true, false or "reasons"'
    elif pointer.endswith("_ms"):
        detail = f"{detail}: whole {MILLISECONDS}"
    elif detail.startswith("Expected `str") and detail.endswith("got `int`"):
        detail = f'{detail}; write it in quotes: "17"'
    if detail.startswith("Expected `"):
        detail = re.sub(r"`|\||\w+|[<>]=", lambda found: WORDS.get(found[0], found[0]), detail)
    return RequestError(422, "invalid request", detail, pointer)


def decoded(decoder: msgspec.json.Decoder[T], body: bytes, fields: Mapping[str, Sequence[str]]) -> T:
    """Decode a request's body; raise RequestError, 400 or 422, with `fields` as `invalid` does."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(str(error), fields) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(error) from None


def malformed(error: Exception) -> RequestError:
    """Return the refusal of a body that is not JSON, or that is nested too deeply to decode."""
    if isinstance(error, RecursionError):
        return RequestError(400, "malformed JSON", "the body is nested too deeply")
    return RequestError(400, "malformed JSON", f"the body is not valid JSON: {error}")


def quoted(text: str) -> str:
    """Return client input for a message: shortened, with control characters escaped."""
    return repr(text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…")


def check_kept(name: str | None, pointer: str) -> None:
    """Raise RequestError, 422, if the id of a viewer or candidate begins with NUL.

    With NUL begin the keys under which a store keeps the values of fields (`VALUE`).
    """
    if name is not None and name[0] == VALUE:
        detail = f"the id {quoted(name)} begins with NUL, as no id may; leave that character out"
        raise RequestError(422, "invalid request", detail, pointer)


def below(pointer: str, name: str) -> str:
    """Return a JSON Pointer to a member of an object, or to the object if the name is too long."""
    if len(name) > MAX_ID_CHARACTERS:
        return pointer
    return f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
