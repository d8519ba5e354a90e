"""Options of a feature kind in a surface file: how each type of option is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema

from serve.contract.errors import TabrankError, unknown_key
from serve.contract.typed_reader import checked_by
from serve.contract.validation import duration_ms, one_of, typed
from serve.features.slots import IMPRESSION, OWNERS, FieldRef


def declared(check: Callable[..., Any]) -> PlainValidator:
    """Read an option that names a part of the surface, by a function of value, parts and key.

    The parts are the attributes of the surface that are valid so far. Without them, the option
    cannot be checked; the surface is refused anyway.
    """

    def validate(value: object, info: ValidationInfo) -> Any:
        parts: Mapping[str, Any] = info.context or {}
        if not {"events", *OWNERS} <= parts.keys():
            return value
        try:
            return check(value, parts, info.field_name)
        except TabrankError as error:
            raise ValueError(str(error).removeprefix(": ")) from None

    return PlainValidator(validate, json_schema_input_type=str)


def field_of(*types: str) -> PlainValidator:
    """Read a reference to a declared field of one of these types, written owner.name.

    The options `viewer` and `candidate` take fields of that owner only.
    """

    def resolve(value: object, parts: Mapping[str, Any], key: str) -> FieldRef:
        text = typed(value, str, "")
        known = [f"{owner}.{name}" for owner in OWNERS for name in parts[owner]]
        if text not in known:
            raise TabrankError(f"{unknown_key('', text, known)}; a field is written owner.name")
        owner, name = text.split(".", 1)
        if key in ("viewer", "candidate") and owner != key:
            raise TabrankError(f"{text!r} must be a {key}'s field")
        kind = parts[owner][name].type
        if kind not in types:
            raise TabrankError(f"{text!r} is a {kind}; it must be {' or '.join(types)}")
        return FieldRef(owner, name)

    return declared(resolve)


def _event(value: object, parts: Mapping[str, Any], key: str) -> str:
    return one_of(value, (*parts["events"], IMPRESSION), "")


DURATION_SCHEMA = WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?[smhd]$"})
Event = Annotated[str, declared(_event)]
HalfLife = Annotated[float, checked_by(duration_ms), Field(alias="half_life"), DURATION_SCHEMA]
