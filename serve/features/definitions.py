"""Feature kinds: the state that each keeps, and its value for a viewer and a candidate.

Training and serving both compute features with this code. Shapes: B requests, R rows (one per
request and candidate), K entries of an affinity map, M values of a multi-valued field, S sums of
an entity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema

from serve.contract.errors import TabrankError, unknown
from serve.contract.reasons import YES_NO
from serve.contract.typed_reader import STRICT, Between, checked_by
from serve.contract.validation import UNITS_MS, duration_ms, one_of, typed
from serve.features.batch import Batch
from serve.features.slots import F64, IMPRESSION, OWNERS, U64, Entity, FieldRef, Map, Presence, Slot, Sum
from serve.features.words import MAX_WORDS, Words

Transform = Literal["none", "log1p"]


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
            raise TabrankError(f"{unknown('key', text, known)}; a field is written owner.name")
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
STAY = Field(alias="max_stay", json_schema_extra={"default": "4h"})
MaxStay = Annotated[float, checked_by(duration_ms), STAY, DURATION_SCHEMA]
HalfLife = Annotated[float, checked_by(duration_ms), Field(alias="half_life"), DURATION_SCHEMA]


@dataclass(frozen=True)
class Prior:
    """Prior of a rate: `rate`, weighted like `weight` observations."""

    __pydantic_config__ = STRICT
    rate: Annotated[float, Between(0.0001, 0.9999)]
    weight: Annotated[float, Between(0.01, 1e6)]


@dataclass(frozen=True)
class Kind:
    """Feature kind; its value is numeric `[R]`, or category hashes `[R]` or `[R, M]`.

    Attributes:
        describe: The feature in words for people, as reasons of a ranking state it.
        unit: The unit of its values; `yes/no` of 1 and 0.
    """

    __pydantic_config__ = STRICT
    categorical: ClassVar[bool] = False
    # The words of a feature without `describe`, from its options.
    template: ClassVar[str] = "{field}"
    # Neither equality nor a fingerprint depends on these.
    describe: Words = field(default="", repr=False, compare=False, kw_only=True)
    unit: Words = field(default="", repr=False, compare=False, kw_only=True)

    @property
    def label(self) -> str:
        """The feature in words: `describe`, or words from its options."""
        return self.describe or self.worded(vars(self))

    @classmethod
    def worded(cls, options: Mapping[str, object]) -> str:
        """Return `Words` for a feature with these options; fields are written owner.name."""
        text = cls.template.format(**options).replace("candidate.", "").replace("context.", "")
        text = text.replace("viewer.", "viewer's ").replace("_", " ").removesuffix(" ms")
        return "".join(filter(str.isprintable, text))[:MAX_WORDS].strip() or "unnamed"

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots of state that the kind keeps; most kinds keep none."""
        return ()

    def value(self, batch: Batch) -> NDArray[np.generic]:
        """Return the value of each row, from the state before `now`; NaN or 0 where missing."""
        raise NotImplementedError


@dataclass(frozen=True)
class Number(Kind):
    """Numeric attribute, unchanged."""

    field: Annotated[FieldRef, field_of("number", "time")]
    transform: Transform = "none"

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, NaN where missing."""
        return batch.field(self.field)


@dataclass(frozen=True)
class Category(Kind):
    """Category as its stable hash."""

    categorical = True
    field: Annotated[FieldRef, field_of("category")]

    def value(self, batch: Batch) -> U64:
        """Return `[R]`, 0 where missing."""
        return batch.field(self.field)


@dataclass(frozen=True)
class MultiCategory(Kind):
    """Set of categories as stable hashes, padded with 0."""

    categorical = True
    field: Annotated[FieldRef, field_of("set")]

    def value(self, batch: Batch) -> U64:
        """Return `[R, M]`."""
        return batch.field(self.field)


@dataclass(frozen=True)
class Context(Number):
    """Number from the context of the request, NaN where the request does not state it."""

    field: Annotated[FieldRef, field_of("number")]


@dataclass(frozen=True)
class Age(Kind):
    """Seconds since a candidate's start; 0 where the start is in the future."""

    template = "time since {field}"
    unit: Words = field(default="s", repr=False, compare=False, kw_only=True)
    field: Annotated[FieldRef, field_of("time")]
    transform: Transform = "none"

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, NaN where the start is missing."""
        age_ms: F64 = batch.now_ms - batch.field(self.field)
        return np.maximum(age_ms, 0.0) / 1000.0


@dataclass(frozen=True)
class Match(Kind):
    """1 where viewer and candidate have the same category, else 0."""

    template = "{candidate} equals {viewer}"
    unit: Words = field(default=YES_NO, repr=False, compare=False, kw_only=True)
    viewer: Annotated[FieldRef, field_of("category")]
    candidate: Annotated[FieldRef, field_of("category")]
    transform: ClassVar[Transform] = "none"

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, NaN where either category is missing."""
        ours, theirs = batch.field(self.viewer), batch.field(self.candidate)
        return np.where((ours == 0) | (theirs == 0), np.nan, (ours == theirs).astype(np.float64))


@dataclass(frozen=True)
class Member(Kind):
    """1 where the candidate's category is in the viewer's set, else 0."""

    template = "{candidate} is among {viewer}"
    unit: Words = field(default=YES_NO, repr=False, compare=False, kw_only=True)
    viewer: Annotated[FieldRef, field_of("set")]
    candidate: Annotated[FieldRef, field_of("category")]
    transform: ClassVar[Transform] = "none"

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, NaN where the candidate's category is missing; 0 for an empty set."""
        theirs = batch.field(self.candidate)
        # [B, M]
        ours = batch.viewer[self.viewer.name]
        return np.where(theirs == 0, np.nan, batch.found(ours, np.ones(ours.shape), theirs))


@dataclass(frozen=True)
class Count(Kind):
    """Number of the viewer's or candidate's events, decayed with `half_life`."""

    template = "{event} events of the {entity}"
    entity: Entity
    event: Event
    half_life_ms: HalfLife = np.inf
    transform: Transform = "none"

    @cached_property
    def slots(self) -> tuple[Sum]:
        """One decayed sum."""
        return (Sum(self.entity, self.event, self.half_life_ms),)

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, ≥ 0."""
        return batch.sums(*self.slots)


@dataclass(frozen=True)
class Gauge(Kind):
    """Number of viewers at a candidate, or of a viewer's candidates, from `up` until `down`.

    Each viewer counts once at a candidate, and at the last 8 candidates only; one without an id
    does not count. `max_stay` after the last `up`, or up to a seventh earlier, the viewer no longer
    counts, for `down` events get lost. Example: join and leave give the audience of a room.
    """

    template = "between {up} and {down} now"
    entity: Entity
    up: Event
    down: Event
    max_stay_ms: MaxStay = 4.0 * UNITS_MS["h"]
    transform: Transform = "none"

    @cached_property
    def slots(self) -> tuple[Presence]:
        """One presence, which gauges of viewers and of candidates share."""
        return (Presence(self.up, self.down, self.max_stay_ms),)

    def value(self, batch: Batch) -> NDArray[Any]:
        """Return `[R]`, ≥ 0."""
        return batch.presence(*self.slots, self.entity)


@dataclass(frozen=True)
class Rate(Kind):
    """Smoothed engagement rate: (events + rate · weight) / (over + weight), both decayed.

    This is the posterior mean under a Beta prior (Gelman et al., Bayesian Data Analysis, 2.4).
    """

    template = "{event} per {over} of the {entity}"
    entity: Entity
    event: Event
    over: Event
    prior: Prior
    half_life_ms: HalfLife = np.inf
    transform: Transform = "none"

    @cached_property
    def slots(self) -> tuple[Sum, Sum]:
        """The decayed sums of `event` and `over`."""
        event = Sum(self.entity, self.event, self.half_life_ms)
        return event, replace(event, event=self.over)

    def value(self, batch: Batch) -> F64:
        """Return `[R]`; the prior's rate where neither event occurred."""
        p = self.prior
        event, over = (batch.sums(slot) for slot in self.slots)
        return (event + p.rate * p.weight) / (over + p.weight)


@dataclass(frozen=True)
class Affinity(Kind):
    """The viewer's `Rate` on candidates with the same field value (topic, host, genre, tag).

    For a multi-valued field it is the mean over the candidate's values.
    """

    template = "viewer's {event} per {over} at the same {field}"
    event: Event
    over: Event
    field: Annotated[FieldRef, field_of("category", "set")]
    prior: Prior
    keep: Annotated[int, Between(1, 1024)]
    half_life_ms: HalfLife = np.inf
    transform: Transform = "none"

    @cached_property
    def slots(self) -> tuple[Map]:
        """One map per viewer."""
        return (Map(self.event, self.over, self.field, self.half_life_ms, self.keep),)

    def value(self, batch: Batch) -> F64:
        """Return `[R]`: the prior's rate without an entry, NaN without a value of the candidate."""
        p = self.prior
        keys, event, over = batch.map(*self.slots)
        # [B, K]: the entry's rate minus the prior's; exactly 0 at an empty place.
        gain = (event - p.rate * over) / (over + p.weight)
        values = batch.field(self.field)
        if values.ndim == 1:
            return np.where(values == 0, np.nan, p.rate + batch.found(keys, gain, values))
        num_values = (values != 0).sum(axis=1)
        total = np.zeros(len(values))
        for m in range(values.shape[1]):
            total += batch.found(keys, gain, values[:, m])
        return np.where(num_values == 0, np.nan, p.rate + total / np.maximum(num_values, 1))


KINDS: dict[str, type[Kind]] = {
    "number": Number,
    "category": Category,
    "multi_category": MultiCategory,
    "context": Context,
    "age": Age,
    "match": Match,
    "member": Member,
    "count": Count,
    "gauge": Gauge,
    "rate": Rate,
    "affinity": Affinity,
}
