"""Contract of a feature kind: its options, the state that it needs, and its value.

Training and serving both compute features with this code. Shapes: B requests, R rows (one per
request and candidate), M values of a multi-valued field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo, WithJsonSchema

from serve.contract.errors import TabrankError, unknown
from serve.contract.typed_reader import STRICT, Between, checked_by
from serve.contract.validation import duration_ms, one_of, typed
from serve.features.batch import Batch
from serve.features.slots import ENTITIES, IMPRESSION, OWNERS, Entity, FieldRef, Slot

Transform = Literal["none", "log1p"]
# Limits the characters of a label, which must fit one line of a screen. An answer may hold
# thousands of labels.
MAX_WORDS = 80


def _words(value: object, where: str) -> str:
    text: str = typed(value, str, where)
    if not text.strip() or len(text) > MAX_WORDS or not text.isprintable():
        raise TabrankError(f"{where}: {text!r} must be words on one line, 1 to {MAX_WORDS} characters")
    return text


# Words for people in a surface: labels and units of features.
Words = Annotated[str, checked_by(_words), Field(json_schema_extra={"maxLength": MAX_WORDS})]


def declared(check: Callable[..., Any], schema: Any = str) -> PlainValidator:
    """Read an option that names a part of the surface, such as an event.

    `check` gets the value, the parts, which are the attributes of the surface that are valid so
    far, and the option's key. Without parts the option cannot be checked, and need not be, because
    the surface is refused anyway.
    """

    def validate(value: object, info: ValidationInfo) -> Any:
        parts: Mapping[str, Any] = info.context or {}
        if not {"events", *OWNERS} <= parts.keys():
            return value
        try:
            return check(value, parts, info.field_name)
        except TabrankError as error:
            raise ValueError(str(error).removeprefix(": ")) from None

    return PlainValidator(validate, json_schema_input_type=schema)


def field_of(*types: str, of: str = "") -> PlainValidator:
    """Read a reference to a declared field of one of these types, written owner.name.

    With `of`, it must be a field of that owner. The options `viewer` and `candidate` take fields of
    the owner of that name only.
    """

    def resolve(value: object, parts: Mapping[str, Any], key: str) -> FieldRef:
        text = typed(value, str, "")
        known = [f"{owner}.{name}" for owner in OWNERS for name in parts[owner]]
        if text not in known:
            raise TabrankError(f"{unknown('key', text, known)}; a field is written owner.name")
        owner, name = text.split(".", 1)
        if (of or key) in ENTITIES and owner != (of or key):
            raise TabrankError(f"{text!r} must be a {of or key}'s field")
        kind = parts[owner][name].type
        if kind not in types:
            raise TabrankError(f"{text!r} is a {kind}; it must be {' or '.join(types)}")
        return FieldRef(owner, name)

    return declared(resolve)


def _event(value: object, parts: Mapping[str, Any], key: str) -> str:
    return one_of(value, (*parts["events"], IMPRESSION), "")


def _holder(value: object, parts: Mapping[str, Any], key: str) -> Entity | tuple[Entity, ...]:
    """Read what a kind counts for: viewer, candidate, a candidate's field, or the pair."""
    if value == list(PAIR):
        return PAIR
    if isinstance(value, list):
        raise TabrankError(f'{value} must be ["viewer", "candidate"], which is the only pair')
    text = str(typed(value, str, ""))
    if text in ENTITIES:
        return text
    fields = {f"candidate.{name}": field for name, field in parts["candidate"].items()}
    if text not in fields:
        wanted = unknown("value", text, (*ENTITIES, *fields))
        raise TabrankError(f'{wanted}; or state the pair ["viewer", "candidate"]')
    if fields[text].type != "category":
        raise TabrankError(f"{text!r} is a {fields[text].type}; it must be a category")
    if fields[text].request_time:
        raise TabrankError(f"{text!r} is stated by requests, so that no event can count for it")
    return text


def _of_pairs(value: int | None, info: ValidationInfo) -> int | None:
    if value is not None and info.data.get("entity", PAIR) != PAIR:
        raise ValueError('only entity = ["viewer", "candidate"] takes it; leave it out')
    return value


# The entity of a kind that counts for each viewer and candidate.
PAIR: tuple[Entity, ...] = ("viewer", "candidate")
DURATION_SCHEMA = WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?[smhd]$"})
Event = Annotated[str, declared(_event)]
Holder = Annotated[Entity | tuple[Entity, ...], declared(_holder, str | list[str])]
# How many candidates of a viewer the state of pairs keeps; None for the default.
Keep = Annotated[Annotated[int, Between(1, 1024)] | None, AfterValidator(_of_pairs)]
HalfLife = Annotated[float, checked_by(duration_ms), Field(alias="half_life"), DURATION_SCHEMA]


@dataclass(frozen=True)
class Prior:
    """What a rate is before anything has happened.

    Attributes:
        rate: The rate to assume.
        weight: How many observations the assumption is worth.
    """

    __pydantic_config__ = STRICT
    rate: Annotated[float, Between(0.0001, 0.9999)]
    weight: Annotated[float, Between(0.01, 1e6)]


@dataclass(frozen=True)
class Kind:
    """Feature kind; its value is numeric `[R]`, or category hashes `[R]` or `[R, M]`.

    A subclass names itself, `class Recency(Kind, kind="recency")`, and its fields are the options
    that a surface states.

    Attributes:
        describe: The feature in words for people. Without it, they are made from the options.
        unit: The unit of its values, for people; `yes/no` shows 1 and 0 as yes and no.
    """

    __pydantic_config__ = STRICT
    # The kinds by the names that surfaces give them.
    registry: ClassVar[dict[str, type[Kind]]] = {}
    categorical: ClassVar[bool] = False
    # The words of a feature without `describe`, from its options.
    template: ClassVar[str] = "{field}"
    # Neither equality nor a fingerprint depends on these.
    describe: Words = field(default="", repr=False, compare=False, kw_only=True)
    unit: Words = field(default="", repr=False, compare=False, kw_only=True)

    def __init_subclass__(cls, *, kind: str) -> None:
        assert kind not in cls.registry, f"two feature kinds are named {kind!r}"
        cls.registry[kind] = cls

    @property
    def label(self) -> str:
        """The feature in words: `describe`, or words from its options."""
        return self.describe or self.worded(vars(self))

    @classmethod
    def worded(cls, options: Mapping[str, object]) -> str:
        """Return the words for a feature with these options; fields are written owner.name."""
        entity = options.get("entity", "")
        who = entity if isinstance(entity, str) else "viewer at the candidate"
        text = cls.template.format(**{**options, "entity": who})
        text = text.replace("candidate.", "").replace("context.", "").replace("viewer.", "viewer's ")
        text = text.replace("_", " ").removesuffix(" ms")
        return "".join(filter(str.isprintable, text))[:MAX_WORDS].strip() or "unnamed"

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots of state that the kind keeps; most kinds keep none."""
        return ()

    def width(self, fields: Mapping[str, Mapping[str, Any]]) -> int | None:
        """Return the number of hashes in a row, from the surface's fields; None if there is one."""
        return None

    def value(self, batch: Batch) -> NDArray[np.generic]:
        """Return the value of each row, from the state before `now`; NaN or 0 where missing."""
        raise NotImplementedError
