"""Rules of a slate, as an arm declares them; `serve.ranking.slate` applies them.

A new rule is a subclass of `RuleKind` and an option of `Rule` here, and a module of
`serve.ranking.slate`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from math import inf
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, WithJsonSchema, model_validator

from serve.contract.errors import unknown
from serve.contract.rankings import MAX_CANDIDATES
from serve.contract.typed_reader import STRICT, Between, refusal
from serve.features.field_types import TYPES, TypeName
from serve.features.outcomes import Weight
from serve.features.surface import Surface

# Limits on an arm's rules, on the words of a condition, and on the characters of all rules in
# words. They bound the time that rules take in a request, and the size of its exposure, which
# quotes them.
MAX_RULES, MAX_WORDS, MAX_TEXT = 32, 100, 4_000
# Numbers that differ must differ in words too, times in milliseconds included.
EXACT = ".15g"
# Features are float32, and no finite one is much larger than this.
LARGEST = 1e38


@dataclass(frozen=True)
class Wanted:
    """What a value must be: one of some words, or a number from `low` to `high`."""

    words: tuple[str, ...] = ()
    low: float = -inf
    high: float = inf

    def __str__(self) -> str:
        if self.words:
            return f"= {' or '.join(self.words)}"
        low, high = f"{self.low:{EXACT}}", f"{self.high:{EXACT}}"
        ends = [f"≥ {low}"] * (self.low > -inf) + [f"≤ {high}"] * (self.high < inf)
        return f"= {low}" if self.low == self.high else " and ".join(ends)


def _wanted(value: object) -> Wanted:
    """Read what a condition wants: "yes", [a, b], 3, or {min: 3, max: 5}."""
    given: list[Any] = value if isinstance(value, list) else [value]
    if 0 < len(given) <= MAX_WORDS and all(isinstance(word, str) and word for word in given):
        return Wanted(tuple(given))
    ends: dict[Any, Any] = value if isinstance(value, dict) else {"min": value, "max": value}
    for key in ends:
        if key not in ("min", "max"):
            raise refusal(((key,), unknown("key", key, ("min", "max"))))
    numbers = (isinstance(end, int | float) and not isinstance(end, bool) for end in ends.values())
    # NaN is no number either.
    if not ends or not all(numbers) or not all(abs(end) <= LARGEST for end in ends.values()):
        raise ValueError(
            f"{value!r:.60} must be a string in quotes (YAML reads yes as true), a list of up to {MAX_WORDS} of "
            f"them, a number within ±{LARGEST:g}, or a range such as {{min: 3}}, {{max: 5}} or both"
        )
    low, high = float(ends.get("min", -inf)), float(ends.get("max", inf))
    if not low <= high:
        raise ValueError(
            f"no number is at least {low:{EXACT}} and at most {high:{EXACT}}; exchange min and max"
        )
    return Wanted(low=low, high=high)


def _names_some(value: object) -> object:
    if value == {}:
        raise ValueError(
            'it names no condition; name a field or a feature, such as {candidate.partner: "yes"}'
        )
    return value


_ENDS = {"min": {"type": "number"}, "max": {"type": "number"}}
_WANTED: list[dict[str, Any]] = [
    {"type": "string", "minLength": 1},
    {"type": "number"},
    {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_WORDS},
    {"type": "object", "properties": _ENDS, "additionalProperties": False, "minProperties": 1},
]
Where = Annotated[
    Mapping[str, Annotated[Wanted, BeforeValidator(_wanted), WithJsonSchema({"anyOf": _WANTED})]],
    BeforeValidator(_names_some),
]


# Pairs of the path of a part of a rule and why a surface does not support it.
Misfits = Iterator[tuple[tuple[str, ...], str]]


class RuleKind(ABC):
    """One kind of rule; its fields are the options that an arm states."""

    # Why it needs a model's scores. Without a reason it holds in the popular order too.
    needs_scores: ClassVar[str] = ""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The fields, such as candidate.host, and the features that it reads."""

    @property
    @abstractmethod
    def vain(self) -> str:
        """Why it changes nothing, whatever the surface; empty if it may change something."""

    @abstractmethod
    def misfits(self, surface: Surface) -> Misfits:
        """Yield the path of each option that a surface does not support, and why."""


class Conditional(RuleKind):
    """Rule about the candidates that meet conditions."""

    where: Where

    @property
    def names(self) -> tuple[str, ...]:
        """What the conditions name."""
        return tuple(self.where)

    def misfits(self, surface: Surface) -> Misfits:
        """Yield the path of each condition that a surface does not support, and why."""
        kinds = surface.features.items()
        types: dict[str, TypeName] = {path: one.type for path, one in surface.paths.items()}
        types |= {name: "category" if kind.categorical else "number" for name, kind in kinds}
        known = [name for name in types if self.needs_scores or name.startswith(("candidate.", "context."))]
        if all(name in known and name.startswith(("viewer.", "context.")) for name in self.where):
            why = "the candidates of a request share these fields, so the rule cannot tell them apart"
            remedy = f"add a field of candidates{' or a feature of them' * bool(self.needs_scores)}"
            yield ("where",), f"{why}; {remedy}"
        for name, wanted in self.where.items():
            at, given = ("where", name), str(wanted).removeprefix("= ")
            if name not in types:
                yield at, unknown("field or feature", name, known)
            elif name not in known:
                why = "the rule holds in the popular order too, which has neither viewers nor features"
                yield at, f"{why}; use one of {', '.join(known)}"
            elif wanted.words and not TYPES[types[name]].is_hashed:
                yield at, f"{name} is a number; give a number or a range such as {{min: 3}}, not {given}"
            elif not wanted.words and TYPES[types[name]].is_hashed:
                yield at, f"{name} is a {types[name]}; give a string in quotes or a list of them, not {given}"


@dataclass(frozen=True)
class Boost(Conditional):
    """Raise or lower the candidates that meet all conditions; it needs scores.

    Attributes:
        where: Fields (candidate.partner, viewer.country, context.hour) or features, each with what
            it must be: a string, one of a list, a number, or {min, max}.
        by: What to add to the utility, in the utility's unit. A negative number lowers.
    """

    __pydantic_config__ = STRICT
    needs_scores = "a boost adds to a model's utility"
    where: Where
    by: Weight

    def __str__(self) -> str:
        return f"boost by {self.by:+{EXACT}} where {spelled(self.where)}"

    @property
    def vain(self) -> str:
        """Why it changes nothing."""
        return "" if self.by else "by is 0"


@dataclass(frozen=True)
class Spread(RuleKind):
    """Keep candidates that share a value apart: at most `most` in any `within` places in a row.

    Attributes:
        field: A category of the candidates, such as candidate.host.
        most: Largest number of candidates with the same value.
        within: Number of places in a row in which they are counted.
    """

    __pydantic_config__ = STRICT
    field: str
    most: Annotated[int, Between(1, MAX_CANDIDATES - 1)]
    within: Annotated[int, Between(2, MAX_CANDIDATES)]

    def __str__(self) -> str:
        return f"spread {self.field}: at most {self.most} in any {self.within} places in a row"

    @property
    def names(self) -> tuple[str, ...]:
        """The field."""
        return (self.field,)

    def misfits(self, surface: Surface) -> Misfits:
        """Yield why the field is not a category of candidates."""
        shared = [f"candidate.{name}" for name, one in surface.candidate.items() if one.type == "category"]
        if self.field in surface.paths.keys() - shared:
            yield ("field",), f"a spread needs a category of candidates: {', '.join(shared)}"
        elif self.field not in shared:
            yield ("field",), unknown("category field", self.field, shared)

    @property
    def vain(self) -> str:
        """Why it changes nothing."""
        is_vain = self.most >= self.within
        return f"most is {self.most} and within is {self.within}" if is_vain else ""


@dataclass(frozen=True)
class Limit(Conditional):
    """Show at most `most` candidates that meet all conditions in the first places.

    Attributes:
        where: Fields of candidates or of the context, each with what it must be: a string, one of a
            list, a number, or {min, max}.
        most: Largest number of these candidates.
        first: Number of places, from the first on, in which they are counted.
    """

    __pydantic_config__ = STRICT
    where: Where
    most: Annotated[int, Between(0, MAX_CANDIDATES - 1)]
    first: Annotated[int, Between(1, MAX_CANDIDATES)]

    def __str__(self) -> str:
        places = f"{self.first} place{'s' * (self.first > 1)}"
        return f"limit {spelled(self.where)}: at most {self.most} in the first {places}"

    @property
    def vain(self) -> str:
        """Why it changes nothing."""
        is_vain = self.most >= self.first
        return f"most is {self.most} and first is {self.first}" if is_vain else ""


@dataclass(frozen=True)
class Rule:
    """One rule of a slate: a boost, a spread or a limit.

    Attributes:
        boost: Raise or lower candidates.
        spread: Keep candidates of one host, or any other value, apart.
        limit: Show only a few of some candidates in the first places.
    """

    __pydantic_config__ = ConfigDict(**STRICT, json_schema_extra={"minProperties": 1, "maxProperties": 1})
    boost: Boost | None = None
    spread: Spread | None = None
    limit: Limit | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Rule:
        if [getattr(self, option.name) for option in fields(self)].count(None) != len(fields(self)) - 1:
            raise ValueError("a rule is one of boost, spread and limit; begin each rule with a dash")
        if self.one.vain:
            raise ValueError(f"{self.one.vain}, so the rule changes nothing; change it, or leave it out")
        return self

    @cached_property
    def name(self) -> str:
        """The name of its kind, such as `boost`."""
        return next(option.name for option in fields(self) if getattr(self, option.name))

    @cached_property
    def one(self) -> RuleKind:
        """The boost, spread or limit."""
        kind: RuleKind = getattr(self, self.name)
        return kind

    @cached_property
    def text(self) -> str:
        """The rule in words, as answers, the log and reports have it."""
        return str(self.one)

    def misfits(self, surface: Surface) -> Misfits:
        """Yield the path of each part of the rule that a surface does not support, and why."""
        yield from (((self.name, *path), why) for path, why in self.one.misfits(surface))


def spelled(where: Mapping[str, Wanted]) -> str:
    """Return conditions in words."""
    return " and ".join(f"{name} {wanted}" for name, wanted in where.items())
