"""Read mappings from files into typed dataclasses: all errors at once, a sentence for each.

The dataclass states names, types, ranges and defaults; pydantic checks them, and writes the JSON
Schema. Only configuration is read this way, never a request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeVar, cast, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, ValidationError

from serve.contract.errors import TabrankError, unknown
from serve.contract.validation import TYPE_NAMES, number, whole

Model = TypeVar("Model")
# The keys that lead to a level of a file; "*" stands for a name that the user chooses.
Level = tuple[str, ...]
# For `__pydantic_config__`: refuse unknown keys.
STRICT = ConfigDict(extra="forbid")
# The name of an item of `ByName`. No file has the alias by accident, so an item has no such key.
ItemName = Annotated[str, Field(alias="<name>", default=""), SkipJsonSchema()]
# The type that pydantic wanted, in words, by its kind of error.
TYPE_ERRORS = {f"{kind.__name__}_type": words for kind, words in TYPE_NAMES.items()}
TYPE_ERRORS |= {"string_type": TYPE_NAMES[str], "tuple_type": TYPE_NAMES[list]}
TYPE_ERRORS |= {"dataclass_type": TYPE_NAMES[dict]}


class Problem(NamedTuple):
    """Error at a path of the values that were read, or a key that is missing there."""

    steps: tuple[Any, ...]
    detail: str
    missing: str = ""


class Invalid(TabrankError):
    """The values do not fit the model; the message has one line for each problem."""

    def __init__(self, where: str, problems: Sequence[Problem], join: str = ".") -> None:
        paths = (join.join([where, ".".join(map(str, one.steps))]).removesuffix(join) for one in problems)
        lines = (f"{path}: {problem.detail}" for path, problem in zip(paths, problems, strict=True))
        super().__init__("\n".join(lines))
        self.problems = problems


def read(
    model: type[Model],
    values: object,
    where: str,
    join: str = ".",
    context: Mapping[str, Any] | None = None,
    most: int | None = None,
) -> Model:
    """Return the values as an instance of a dataclass; validators may read the `context`.

    Raises:
        Invalid: the values do not fit. The message names the first `most` problems, each with its
            path below `where`, the value and the remedy.
    """
    try:
        return cast(Model, _adapter(cast(Any, model)).validate_python(values, context=context))
    except ValidationError as error:
        problems = [_problem(model, one) for one in error.errors(include_url=False)[:most]]
        raise Invalid(where, _causes(problems), join) from None


@cache
def json_schema(model: Any) -> dict[str, Any]:
    """Return the JSON Schema of a dataclass, or of one of pydantic's models."""
    return _adapter(model).json_schema()


@cache
def levels(model: Any, at: Level = ()) -> dict[Level, list[str]]:
    """Return the keys of each level of a model, which itself describes the level `at`."""
    schema = json_schema(model)
    found: dict[Level, list[str]] = {}

    def visit(node: Any, level: Level) -> None:
        if not isinstance(node, dict):
            return
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        if "properties" in node:
            found[level] = list(node["properties"])
        for name, child in node.get("properties", {}).items():
            visit(child, (*level, name))
        visit(node.get("additionalProperties"), (*level, "*"))
        for child in (node.get("items"), *node.get("anyOf", ())):
            visit(child, level)

    visit(schema, at)
    return found


class Between:
    """Closed range of a number; a boolean is not a number."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the range before pydantic does, for a message with both bounds."""
        check = checked_by(whole if source is int else number, self._low, self._high)
        return handler.generate_schema(Annotated[source, Field(ge=self._low, le=self._high), check])


class ByName:
    """Tuple of items that a file holds as a mapping; the `ItemName` of each is its key."""

    def __init__(self, name: Any = str) -> None:
        self._name = name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read a mapping, and return its values."""
        (item, _) = get_args(source)
        mapping: Any = dict.__class_getitem__((self._name, item))
        return handler.generate_schema(Annotated[mapping, AfterValidator(_named)])


def checked_by(check: Callable[..., Any], *arguments: object) -> BeforeValidator:
    """Validate by a function of value, place and `arguments` that raises TabrankError."""

    def validate(value: object) -> Any:
        try:
            return check(value, "", *arguments)
        except TabrankError as error:
            raise ValueError(str(error).removeprefix(": ")) from None

    return BeforeValidator(validate)


def refusal(*problems: tuple[tuple[Any, ...], str]) -> ValidationError:
    """Return the error of a validator that concerns paths below its own value."""
    errors = []
    for steps, detail in problems:
        error = PydanticCustomError("refused", "{detail}", {"detail": detail})
        errors.append(InitErrorDetails(type=error, loc=steps, input=None))
    return ValidationError.from_exception_data("", errors)


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _named(items: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(replace(item, name=name) for name, item in items.items())


def _problem(model: Any, error: Any) -> Problem:
    # pydantic adds "[key]" to the path of an invalid key.
    steps = tuple(step for step in error["loc"] if step != "[key]")
    kind, given = error["type"], error["input"]
    if kind == "missing":
        return Problem(steps[:-1], f"the key {steps[-1]!r} is missing", steps[-1])
    if kind in ("unexpected_keyword_argument", "invalid_key"):
        detail = unknown("key", steps[-1], _known_at(model, steps[:-1]))
    elif kind == "literal_error":
        detail = unknown("value", given, re.findall(r"'([^']+)'", error["ctx"]["expected"]))
    elif kind == "too_long":
        detail = f"there are {len(given)}, and at most {error['ctx']['max_length']} are allowed"
    elif kind in TYPE_ERRORS:
        detail = f"{given!r} must be {TYPE_ERRORS[kind]}"
    else:
        detail = error["msg"].removeprefix("Value error, ")
    return Problem(steps, detail)


def _causes(problems: Sequence[Problem]) -> list[Problem]:
    """Return the outer problems first; leave out a missing key that was only misspelt."""
    meant = {(one.steps[:-1], one.detail.rpartition("; ")[2]) for one in problems}
    causes = [one for one in problems if (one.steps, f"did you mean {one.missing!r}?") not in meant]
    return sorted(causes, key=lambda one: len(one.steps))


def _known_at(model: Any, steps: tuple[Any, ...]) -> list[str]:
    # The place in a list is not a level.
    steps = tuple(step for step in steps if not isinstance(step, int))
    for level, names in levels(model).items():
        pairs = zip(level, steps, strict=False)
        if len(level) == len(steps) and all(key in ("*", step) for key, step in pairs):
            return names
    return []
