"""Surface: the strictly validated declaration of one ranked tab, from a TOML file."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, PlainValidator, StrictBool, ValidationInfo, field_validator
from pydantic.json_schema import SkipJsonSchema

from serve.contract.errors import TabrankError, suggest, unknown
from serve.contract.typed_reader import STRICT, Between, Invalid, checked_by, read, refusal
from serve.features.baseline import Baseline
from serve.features.field_types import TypeName
from serve.features.kind import Kind
from serve.features.outcomes import Outcome, Outcomes, Weight, check_outcomes, misfits
from serve.features.registry import KINDS
from serve.features.slots import IMPRESSION, OWNERS
from serve.features.state_kind import STATE

SHIPPED = Path(__file__).parents[1] / "surfaces"
PositionBias = Literal["ignored", "examined"]
UnknownCandidates = Literal["last", "scored"]
# Limits the length of a surface. There is room for some thousand features: the shipped surfaces
# have four thousand characters.
MAX_CHARACTERS = 128 << 10
# Limits the dots in a line, because tomllib takes time quadratic in the parts of a dotted key.
MAX_DOTS = 1_000
NAME = re.compile("[a-z][a-z0-9_-]{0,63}")
# Names of the columns that a log has beside the fields.
RESERVED = re.compile(rf"id|(ts|ends|seen|stated|received)_ms|seq|stated|removed|{STATE}")
# The key under which the reader passes the text. No TOML file can have it by accident.
TEXT_KEY = "<text>"


@dataclass(frozen=True)
class Field:
    """Declared attribute of a viewer, a candidate or a request's context.

    Attributes:
        type: Type of the values.
        max: The number of members that are kept of a set, the first ones.
        request_time: Whether a request may state the field; of a candidate only.
        known_before: Whether a person has said that the value is known before a list is shown.
    """

    __pydantic_config__ = STRICT
    type: TypeName
    max: Annotated[int, Between(1, 256)] = 16
    request_time: StrictBool = False
    # No state depends on it, so it is no part of a fingerprint.
    known_before: StrictBool = field(default=False, repr=False, compare=False)


def _check_field_name(name: str, where: str) -> str:
    if RESERVED.fullmatch(name):
        raise TabrankError(f"{where}: the name {name!r} is reserved for the log; choose another")
    return name


def _spelled_out(field: object) -> object:
    return field if isinstance(field, dict) else {"type": field}


def _read_feature(spec: object, info: ValidationInfo) -> Kind:
    """Read a feature; its options are the fields of the kind's dataclass."""
    if not isinstance(spec, dict):
        raise ValueError(f"{spec!r} must be a table")
    if "kind" not in spec:
        raise ValueError(f"the key 'kind' is missing; kinds are {', '.join(KINDS)}")
    options = dict(spec)
    kind = options.pop("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise refusal((("kind",), unknown("kind", kind, KINDS)))
    try:
        return read(KINDS[kind], options, "", context=info.data)
    except Invalid as error:
        raise refusal(*((problem.steps, problem.detail) for problem in error.problems)) from None


def _misnamed(feature: str, features: Mapping[str, Kind]) -> str:
    """Return why a name is not that of a numeric feature; empty if it is."""
    if feature not in features:
        return unknown("value", feature, features)
    return f"{feature!r} is a category; name a numeric feature" if features[feature].categorical else ""


Fields = Mapping[
    Annotated[str, checked_by(_check_field_name)],
    Annotated[Field, BeforeValidator(_spelled_out, json_schema_input_type=TypeName | Field)],
]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Declaration of one ranked tab.

    Attributes:
        name: Name of the surface.
        events: What viewers do besides seeing a candidate. List `impression` too if clients report
            the impressions; otherwise every candidate in an answer counts as seen.
        viewer: Fields of a viewer.
        candidate: Fields of a candidate.
        context: Fields of a request.
        outcomes: What may follow an impression, by name. The first one is the primary outcome.
        weights: What one unit of an outcome is worth. Outcomes with a weight are predicted, and the
            others are only measured. Without any weight, the first outcome has the weight 1.
        features: Inputs of the model.
        popular: The numeric feature that orders by popularity. One viewer can move it a little
            only, if it has an id: a gauge by 1, another feature by 20 events of each kind in a
            fixed window of ten minutes, or by 200 late ones that arrive in one window. Impressions,
            viewers without an id, and services whose clock is `event` have no such limit.
        baseline: A rule to compare the model with, and to serve as the scorer `baseline` of an arm.
        position_bias: `examined` makes training correct for later positions, which people look at
            less. `ignored` does not. The default is `examined`, but `ignored` where clients report
            impressions. Serving does not use positions.
        unknown_candidates: Where a candidate goes if no record of it is stored and the request
            states none of its fields. `last`, the default, gives it no score and puts it after all
            others, and training leaves it out. `scored` treats it as a candidate without fields,
            for clients that send no candidates.
    """

    __pydantic_config__ = STRICT
    name: Annotated[str, pydantic.Field(json_schema_extra={"pattern": f"^{NAME.pattern}$"})]
    events: tuple[str, ...]
    viewer: Fields = field(default_factory=dict)
    candidate: Fields
    context: Fields = field(default_factory=dict)
    outcomes: Outcomes
    weights: Mapping[str, Weight] = field(default_factory=dict)
    features: Mapping[
        str, Annotated[Kind, PlainValidator(_read_feature, json_schema_input_type=dict[str, Any])]
    ]
    popular: str
    baseline: Baseline | None = None
    position_bias: PositionBias | None = None
    unknown_candidates: UnknownCandidates = "last"
    # The TOML text as it was written, of which artifacts contain a copy.
    text: Annotated[str, pydantic.Field(alias=TEXT_KEY), SkipJsonSchema()]

    @cached_property
    def fields(self) -> dict[str, Mapping[str, Field]]:
        """The fields of viewer, candidate and context."""
        return {owner: getattr(self, owner) for owner in OWNERS}

    @cached_property
    def paths(self) -> dict[str, Field]:
        """The fields by path, such as candidate.price."""
        return {f"{owner}.{name}": one for owner, of in self.fields.items() for name, one in of.items()}

    @cached_property
    def grouping(self) -> list[str]:
        """The paths of the fields whose values can group rows."""
        return [path for path, one in self.paths.items() if one.type in ("category", "number")]

    @cached_property
    def stated(self) -> dict[str, Field]:
        """The candidate's fields that a request may state."""
        return {name: field for name, field in self.candidate.items() if field.request_time}

    @property
    def fingerprint(self) -> str:
        """Return a hash of the part of the declaration that a model depends on.

        No model depends on comments, the order of keys, the baseline, the place of unknown
        candidates, the values of weights, or outcomes that are only measured. They do not change
        the hash.
        """
        bias = "examined" if self.is_debiased else "ignored"
        predicted = {name: outcome.meaning for name, outcome in self.predicted.items()}
        parts = (self.name, self.events, predicted, self.popular, self.fields, self.features, bias)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @cached_property
    def version(self) -> str:
        """The version of the text, by which answers name the surface that they were ranked by."""
        return version_of(self.text)

    @property
    def short_fingerprint(self) -> str:
        """Return the first 12 digits of the fingerprint; an exposure names its surface by them."""
        return self.fingerprint[:12]

    @property
    def impression_events(self) -> bool:
        """Return True if clients report impressions; if not, answered rankings count as seen."""
        return IMPRESSION in self.events

    @cached_property
    def worth(self) -> dict[str, float]:
        """The weight of each outcome that is predicted, in the order of the outcomes."""
        given = self.weights or {next(iter(self.outcomes)): 1.0}
        return {name: given[name] for name in self.outcomes if name in given}

    @cached_property
    def predicted(self) -> dict[str, Outcome]:
        """The outcomes that are predicted, in the order of the columns of predictions."""
        return {name: self.outcomes[name] for name in self.worth}

    @property
    def primary(self) -> Outcome:
        """Return the first outcome that is predicted."""
        return next(iter(self.predicted.values()))

    def is_bad(self, outcome: str) -> bool:
        """Return True if less of an outcome is better."""
        return self.outcomes[outcome].bad or self.weights.get(outcome, 0.0) < 0

    @property
    def longest_window_ms(self) -> int:
        """Return the longest time after an impression within which a predicted outcome counts."""
        return max(outcome.within_ms for outcome in self.predicted.values())

    @property
    def is_debiased(self) -> bool:
        """Return True if training removes position bias."""
        if self.position_bias is None:
            return not self.impression_events
        return self.position_bias == "examined"

    @field_validator("name")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} must be lower-case letters, digits, - and _")
        return name

    @field_validator("viewer", "context")
    @classmethod
    def _are_stored(cls, fields: Mapping[str, Field]) -> Mapping[str, Field]:
        for name, each in fields.items():
            if each.request_time:
                detail = "only a candidate's field can be stated in the request"
                raise refusal(((name, "request_time"), detail))
        return fields

    @field_validator("outcomes")
    @classmethod
    def _are_declared(cls, outcomes: Outcomes, info: ValidationInfo) -> Outcomes:
        return check_outcomes(outcomes, info.data.get("events"))

    @field_validator("weights")
    @classmethod
    def _fit_the_outcomes(cls, weights: Mapping[str, float], info: ValidationInfo) -> Mapping[str, float]:
        outcomes = info.data.get("outcomes")
        if weights and outcomes is not None and (problems := [*misfits(weights, outcomes, weights)]):
            raise refusal(*problems)
        return weights

    @field_validator("popular")
    @classmethod
    def _is_numeric(cls, popular: str, info: ValidationInfo) -> str:
        if why := _misnamed(popular, info.data.get("features", {popular: Kind()})):
            raise ValueError(why)
        return popular

    @field_validator("baseline")
    @classmethod
    def _is_one_rule(cls, baseline: Baseline | None, info: ValidationInfo) -> Baseline | None:
        if baseline is None or "features" not in info.data:
            return baseline
        if bool(baseline.sort) == bool(baseline.weights):
            raise ValueError('state either sort = ["FEATURE", ...] or weights = { FEATURE = 1.0, ... }')
        kind, features = "sort" if baseline.sort else "weights", info.data["features"]
        named: dict[Any, str] = dict(enumerate(baseline.sort)) or {name: name for name in baseline.weights}
        if found := [((kind, at), why) for at, name in named.items() if (why := _misnamed(name, features))]:
            raise refusal(*found)
        return baseline


def version_of(text: str) -> str:
    """Return the version of a surface's text: the first 12 digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_surface(name_or_path: str) -> Surface:
    """Load a shipped surface by name, or one from a path ending in `.toml`.

    Raises:
        TabrankError: the message names the file, the key, the value and the remedy.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = SHIPPED / f"{name_or_path}.toml"
        if not path.is_file():
            known = [p.stem for p in SHIPPED.glob("*.toml")]
            raise TabrankError(
                f"there is no surface {name_or_path!r}{suggest(name_or_path, known)} "
                "(name a surface of your own by the path of its .toml file)"
            )
    if not path.is_file():
        raise TabrankError(f"{path}: no such surface file; name a shipped surface or an existing .toml file")
    try:
        return read_surface(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise TabrankError(f"{path}: is not UTF-8 text; save it as UTF-8") from None


def read_surface(text: str, where: str = "surface") -> Surface:
    """Parse and validate a surface from TOML text; `where` names the file in messages."""
    if len(text) > MAX_CHARACTERS or max(line.count(".") for line in text.split("\n")) > MAX_DOTS:
        raise TabrankError(
            f"{where}: not a surface: longer than {MAX_CHARACTERS:,} characters, or over {MAX_DOTS} dots in a line"
        )
    try:
        return read(Surface, {**tomllib.loads(text), TEXT_KEY: text}, where, ": ")
    except RecursionError:
        raise TabrankError(f"{where}: not valid TOML: is nested too deeply") from None
    # tomllib raises a plain ValueError for a number with thousands of digits.
    except ValueError as error:
        raise TabrankError(f"{where}: not valid TOML: {error}") from None
