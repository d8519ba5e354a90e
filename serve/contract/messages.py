"""Build the parts of error messages: quoted input, the nearest valid name, JSON Pointers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from serve.contract.errors import RequestError, did_you_mean
from serve.contract.rankings import MAX_ID_CHARACTERS

MAX_QUOTED = 80  # characters of a client's that an answer or a log line repeats
MAX_DETAIL = 300


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
