"""YAML document with the positions of its keys and values, for error messages."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from serve.contract.errors import TabrankError

# libyaml's loader, where PyYAML has it, takes a tenth of the time.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The order of findings in a file.
PLACE = attrgetter("line", "column")
# Keys and indices from the root to a value.
Steps = tuple[Any, ...]
Nodes = tuple[yaml.Node, ...]
STRING, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
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


class Place(NamedTuple):
    """Position of a key and of its value; of a list's item, its own twice."""

    key: yaml.Mark
    value: yaml.Mark


class Document:
    """A YAML mapping with positions, and the findings about it.

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
        self._places: dict[Steps, Place] = {}
        self.refused: list[tuple[Steps, Finding]] = []
        self.warnings: list[Finding] = []
        self._num_values = 0
        try:
            root = yaml.compose(raw, LOADER)
            if root:
                self._walk(root, (), (), True)
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

    def _no_yaml(self, place: tuple[int, int], detail: str) -> ConfigRefused:
        return ConfigRefused([Finding(str(self.path), *place, "", f"not valid YAML: {detail}")])

    @property
    def refusals(self) -> list[Finding]:
        """Errors in the file's order; reported once if aliases repeat the value."""
        by_place: dict[Any, Finding] = {}
        for _, problem in self.refused:
            by_place.setdefault((problem.line, problem.column, problem.detail), problem)
        return sorted(by_place.values(), key=PLACE)

    def finding(self, steps: Steps, detail: str, *, key: bool = False) -> Finding:
        """Return a finding at a value or its key, or at the nearest ancestor that is there."""
        near = steps
        while near not in self._places:
            near = near[:-1]
        place = self._places[near]
        return self._finding(steps, detail, place.key if key and near == steps else place.value)

    def _finding(self, steps: Steps, detail: str, mark: yaml.Mark) -> Finding:
        return Finding(str(self.path), mark.line + 1, mark.column + 1, show(steps), detail)

    def _walk(self, node: yaml.Node, steps: Steps, above: Nodes, is_noted: bool) -> None:
        """Note what YAML allows but a configuration must not, and with `is_noted` the places."""
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise _invalid(node, f"more than {MAX_VALUES:,} values, with each alias counted as its content")
        if node in above:
            raise _invalid(node, "an alias that contains itself")
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float") and len(node.value) > MAX_NUMBER:
            raise _invalid(node, f"a number of {len(node.value):,} characters; put text in quotes")
        if node.tag.startswith("tag:yaml.org,2002:") and kind in NOT_JSON:
            detail = f"YAML reads this as {NOT_JSON[kind]}, which Ray cannot pass on; put it in quotes"
            self.refused.append((steps, self._finding(steps, detail, node.start_mark)))
        if is_noted:
            self._places.setdefault(steps, Place(node.start_mark, node.start_mark))
        if isinstance(node, yaml.SequenceNode):
            for i, child in enumerate(node.value):
                self._walk(child, (*steps, i), (*above, node), is_noted)
        if isinstance(node, yaml.MappingNode):
            self._walk_mapping(node, steps, (*above, node), is_noted)

    def _walk_mapping(self, node: yaml.MappingNode, steps: Steps, above: Nodes, is_noted: bool) -> None:
        names = set()
        # Own keys come first: merged ones do not override them, nor those that were merged before.
        for key, child in sorted(node.value, key=lambda pair: pair[0].tag == MERGE):
            if not isinstance(key, yaml.ScalarNode):
                raise _invalid(key, "a mapping or list as a key; is this a template that was not rendered?")
            is_merge = key.tag == MERGE
            here = steps if is_merge else (*steps, _key(key))
            detail = ""
            if (key.tag, key.value) in names:
                detail = f"the key {key.value!r} comes twice; leave one of them out"
            elif key.tag not in (STRING, MERGE):
                detail = f"YAML does not read the key {key.value} as a string; put it in quotes"
            if detail:
                self.refused.append((here, self._finding(here, detail, key.start_mark)))
            names.add((key.tag, key.value))
            if is_merge:
                for merged in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                    self._walk(merged, steps, above, is_noted)
            else:
                is_new = is_noted and here not in self._places
                if is_new:
                    self._places[here] = Place(key.start_mark, child.start_mark)
                self._walk(child, here, above, is_new)


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
        raise _invalid(root, str(error)) from None


def _key(node: yaml.Node) -> Any:
    # Most keys are strings; a constructor for each would be slow.
    return node.value if node.tag == STRING else _constructed(node)


def _invalid(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
