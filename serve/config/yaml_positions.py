"""YAML document with the positions of its keys and values, for error messages."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from serve.contract.errors import TabrankError

# libyaml's loader, where PyYAML has it, takes a tenth of the time.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Keys and indices from the root to a value.
Steps = tuple[Any, ...]
MAX_BYTES = 256 << 10
# Limit the values, counting each alias as its content. Our own file has about 150.
MAX_VALUES = 5_000
# Limit the characters of a number: YAML reads 1:59:59 to base 60, and a long one takes minutes.
MAX_NUMBER = 40
# Exceptions of PyYAML for invalid values.
UNFIT = (ValueError, OverflowError, LookupError, AttributeError)
NOT_JSON = {
    "timestamp": "a time",
    "binary": "bytes",
    "set": "a set",
    "omap": "a list of pairs",
    "pairs": "pairs",
}


@dataclass(frozen=True)
class Finding:
    """An error or a warning at a position of a file."""

    file: str
    line: int
    column: int
    path: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.path}{': ' if self.path else ''}{self.detail}"


class ConfigRefused(TabrankError):
    """A file with errors; the message has one line for each."""

    def __init__(self, problems: list[Finding], warnings: list[Finding] | None = None) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
        self.warnings = warnings or []


class Document:
    """A YAML mapping with positions.

    The position of a value from an alias or a merge is the place where the value is written.
    """

    def __init__(self, path: Path, raw: bytes) -> None:
        """Parse the document; raise ConfigRefused if it is not YAML or not a mapping."""
        self.path = path
        # YAML allows UTF-16, but Ray opens files as UTF-8.
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise self._no_yaml((1, 1), "it is UTF-16; save it as UTF-8 text")
        if len(raw) > MAX_BYTES:
            detail = f"it has {len(raw):,} bytes, more than {MAX_BYTES:,}; is this a Ray Serve config file?"
            raise ConfigRefused([Finding(str(path), 1, 1, "", detail)])
        try:
            root = yaml.compose(raw, LOADER)
            self.oddities = list(_oddities(root, (), (), count())) if root else []
            self.value: dict[str, Any] = _constructed(root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise self._no_yaml(place, error.problem or "") from None
        except yaml.reader.ReaderError as error:
            line = raw[: error.position].count(b"\n") + 1
            raise self._no_yaml((line, 1), f"{error.reason}; save it as UTF-8 text") from None
        except RecursionError:
            raise self._no_yaml((1, 1), "it is nested too deeply") from None
        if not isinstance(self.value, dict):
            detail = "expected a mapping with the key 'applications' at the top"
            raise ConfigRefused([Finding(str(path), 1, 1, "", detail)])
        assert root is not None
        self._root: yaml.Node = root

    def _no_yaml(self, place: tuple[int, int], detail: str) -> ConfigRefused:
        return ConfigRefused([Finding(str(self.path), *place, "", f"not valid YAML: {detail}")])

    def place(self, steps: Steps, key: bool = False) -> tuple[int, int]:
        """Return line and column, from 1, of a value or its key, or of the nearest ancestor."""
        node: yaml.Node = self._root
        mark = node.start_mark
        for i, step in enumerate(steps):
            child = _child(node, step)
            if child is None:
                break
            key_node, node = child
            last = i == len(steps) - 1
            mark = key_node.start_mark if key_node is not None and key and last else node.start_mark
        return mark.line + 1, mark.column + 1


def show(steps: Steps) -> str:
    """Format a path as text: `applications[0].deployments[1].name`."""
    indices = (isinstance(step, int) and not isinstance(step, bool) for step in steps)
    shown = (f"[{step}]" if index else f".{step}" for step, index in zip(steps, indices, strict=True))
    return "".join(shown).lstrip(".")


def _constructed(root: yaml.Node | None) -> Any:
    if root is None:
        return None
    try:
        return yaml.constructor.SafeConstructor().construct_document(root)
    # For example, the 31st of February.
    except UNFIT as error:
        mark = root.start_mark
        raise yaml.MarkedYAMLError(problem=str(error), problem_mark=mark) from None


def _child(node: yaml.Node, step: Any) -> tuple[yaml.Node | None, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return None, node.value[step]
    if isinstance(node, yaml.MappingNode):
        # Merged keys come first, and are overridden.
        for key, child in reversed(node.value):
            if _key(key) == step and type(_key(key)) is type(step):
                return key, child
    return None


def _key(node: yaml.Node) -> Any:
    # Most keys are strings; a constructor for each would be slow.
    if node.tag == "tag:yaml.org,2002:str":
        return node.value
    try:
        return yaml.constructor.SafeConstructor().construct_object(node) if _is_scalar(node) else None
    except UNFIT as error:
        raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


def _is_scalar(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode)


def _oddities(
    node: yaml.Node, steps: Steps, above: tuple[yaml.Node, ...], counted: Iterator[int]
) -> Iterator[tuple[Steps, yaml.Mark, str]]:
    """Yield what YAML allows but a configuration must not: duplicate keys, non-JSON values."""
    kind = node.tag.rpartition(":")[2]
    if next(counted) >= MAX_VALUES:
        problem = f"more than {MAX_VALUES:,} values, with each alias counted as its content"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    if kind in ("int", "float") and len(node.value) > MAX_NUMBER:
        problem = f"a number of {len(node.value):,} characters; put it in quotes if it is text"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    if node.tag.startswith("tag:yaml.org,2002:") and kind in NOT_JSON:
        yield (
            steps,
            node.start_mark,
            f"YAML reads this as {NOT_JSON[kind]}, which Ray cannot pass on; put it in quotes",
        )
    if node in above:
        problem = "an alias that contains itself"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            yield from _oddities(child, (*steps, i), (*above, node), counted)
    if isinstance(node, yaml.MappingNode):
        names = set()
        for key, child in node.value:
            if not _is_scalar(key):
                raise yaml.MarkedYAMLError(
                    problem="a mapping or list as a key; is this a template that was not rendered?",
                    problem_mark=key.start_mark,
                )
            merge = key.tag == "tag:yaml.org,2002:merge"
            here = steps if merge else (*steps, _key(key))
            if (key.tag, key.value) in names:
                yield here, key.start_mark, f"the key {key.value!r} comes twice; leave one of them out"
            elif not merge and key.tag != "tag:yaml.org,2002:str":
                yield (
                    here,
                    key.start_mark,
                    f"YAML does not read the key {key.value} as a string; put it in quotes",
                )
            names.add((key.tag, key.value))
            yield from _oddities(child, here, (*above, node), counted)
