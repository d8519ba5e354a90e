"""Rules of a slate, as an arm declares them; `serve.ranking.slate` applies them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, WithJsonSchema, model_validator

from serve.contract.errors import unknown
from serve.contract.rankings import MAX_CANDIDATES
from serve.contract.typed_reader import STRICT, Between, refusal
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


@dataclass(frozen=True)
class Boost:
    """Raise or lower the candidates that meet all conditions; it needs scores.

    Attributes:
        where: Fields (candidate.partner, viewer.country, context.hour) or features, each with what
            it must be: a string, one of a list, a number, or {min, max}.
        by: What to add to the utility, in the utility's unit. A negative number lowers.
    """

    __pydantic_config__ = STRICT
    where: Where
    by: Weight

    def __str__(self) -> str:
        return f"boost by {self.by:+{EXACT}} where {spelled(self.where)}"


@dataclass(frozen=True)
class Spread:
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


@dataclass(frozen=True)
class Limit:
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
        if len([one for one in (self.boost, self.spread, self.limit) if one]) != 1:
            raise ValueError("a rule is one of boost, spread and limit; begin each rule with a dash")
        if self.boost and not self.boost.by:
            raise ValueError("by is 0, so the rule changes nothing; give another number, or leave it out")
        for one, span in ((self.spread, "within"), (self.limit, "first")):
            if one and one.most >= getattr(one, span):
                raise ValueError(
                    f"most is {one.most} and {span} is {getattr(one, span)}, so the rule changes nothing; "
                    f"make {span} larger"
                )
        return self

    @cached_property
    def text(self) -> str:
        """The rule in words, as answers, the log and reports have it."""
        return str(self.boost or self.spread or self.limit)

    def misfits(self, surface: Surface) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the path of each part of the rule that a surface does not support, and why."""
        fields = {
            f"{owner}.{name}": field.type
            for owner, of in surface.fields.items()
            for name, field in of.items()
        }
        features = {
            name: "category" if kind.categorical else "number" for name, kind in surface.features.items()
        }
        where: Mapping[str, Wanted] = {}
        known, name = fields | features, "boost"
        if self.spread:
            shared = [
                key for key, kind in fields.items() if key.startswith("candidate.") and kind == "category"
            ]
            if self.spread.field in fields.keys() - shared:
                yield ("spread", "field"), f"a spread needs a category of candidates: {', '.join(shared)}"
            elif self.spread.field not in shared:
                yield ("spread", "field"), unknown("category field", self.spread.field, shared)
        elif self.boost:
            where = self.boost.where
        elif self.limit:
            where, name = self.limit.where, "limit"
            known = {key: kind for key, kind in fields.items() if not key.startswith("viewer.")}
        if where and all(key in known and key.startswith(("viewer.", "context.")) for key in where):
            why = "the candidates of a request share these fields, so the rule cannot tell them apart"
            remedy = f"add a field of candidates{' or a feature of them' * (name == 'boost')}"
            yield (name, "where"), f"{why}; {remedy}"
        for key, wanted in where.items():
            at, given = (name, "where", key), str(wanted).removeprefix("= ")
            if key not in known and key in fields | features:
                why = "a limit holds in the popular order too, which has neither viewers nor features"
                yield at, f"{why}; use one of {', '.join(known)}"
            elif key not in known:
                yield at, unknown("field or feature", key, known)
            elif wanted.words and known[key] not in ("category", "set"):
                yield at, f"{key} is a number; give a number or a range such as {{min: 3}}, not {given}"
            elif not wanted.words and known[key] in ("category", "set"):
                yield at, f"{key} is a {known[key]}; give a string in quotes or a list of them, not {given}"


def spelled(where: Mapping[str, Wanted]) -> str:
    """Return conditions in words."""
    return " and ".join(f"{name} {wanted}" for name, wanted in where.items())
