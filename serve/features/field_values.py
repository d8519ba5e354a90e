"""Validation of field values against the types that a surface declares."""

from __future__ import annotations

from collections.abc import Mapping

from serve.contract.errors import RequestError, did_you_mean
from serve.contract.messages import quoted
from serve.contract.rankings import MAX_FIELD_CHARACTERS, MAX_SET_MEMBERS
from serve.contract.validation import PLAIN_MS, other_unit
from serve.features.field_types import TYPES
from serve.features.surface import Field

# The times from 2020 to 2034 in seconds. Read as milliseconds they are from 19 to 24 January 1970.
# Other times of 1970 are accepted, because a birth date may be one.
RECENT_SECONDS = range(1_577_836_800, 2_051_222_400)


def plain(known: Mapping[str, Field], name: str, value: object, pointer: str) -> object:
    """Return a field's value: a float, a whole number of ms, a string, a list of strings, or None.

    Raises:
        RequestError: the surface has no such field, or the value does not fit it.
    """
    field = known.get(name)
    if field is None:
        names = ", ".join(known) or "none"
        detail = f"unknown field {quoted(name)}{did_you_mean(name, known)}; the surface takes {names} here"
        raise RequestError(422, "invalid request", detail, pointer)
    if value is None:
        return None
    type_ = TYPES[field.type]
    if (found := type_.plain(value)) is None:
        raise RequestError(422, "invalid request", f"{name!r} must be {type_.wanted} or null", pointer)
    return found


def bounded(known: Mapping[str, Field], name: str, value: object, pointer: str) -> object:
    """Return the value as `plain` does, if a client may send it: within the limits of length.

    Logs may hold longer values, so they are read with `plain`.

    Raises:
        RequestError: the surface has no such field, or the value does not fit it, is too long, or
            is a time in another unit.
    """
    value = plain(known, name, value, pointer)
    # `plain` returns a whole number only for a time.
    if type(value) is int and (value in RECENT_SECONDS or value >= PLAIN_MS[0]):
        check_unit(value, pointer)
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


def check_unit(time: int, pointer: str) -> None:
    """Refuse a client's time that is not in milliseconds since 1970.

    Raises:
        RequestError: the time looks like one in another unit; the message names it and the factor.
    """
    if why := other_unit(time):
        detail = f"{time} {why}: times are in milliseconds since 1970"
        raise RequestError(422, "invalid request", detail, pointer)
