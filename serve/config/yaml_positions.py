"""YAML document with the positions of its keys and values, for error messages."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from serve.contract.errors import TabrankError

# libyaml's loader, where PyYAML has it, takes a tenth of the time.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The order of findings in a file.
PLACE = attrgetter("line", "column")
# Keys and indices from the root to a value.
Steps = tuple[Any, ...]
STRING, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
# Exceptions of PyYAML for invalid values.
UNFIT = (ValueError, OverflowError, LookupError, AttributeError)
# Types that YAML has and JSON lacks, in words.
NOT_JSON = {"timestamp": "a time", "binary": "bytes", "set": "a set", "omap": "pairs", "pairs": "pairs"}


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
    """A YAML mapping with positions, and the findings about it.

    The position of a value from an alias or a merge is the place where the value is written.
    """

    def __init__(self, path: Path, raw: bytes) -> None:
        """Parse the document; raise ConfigRefused if it is not YAML or not a mapping."""
        self.path = path
        self.refused: list[tuple[Steps, Finding]] = []
        self.warnings: list[Finding] = []
        try:
            root = yaml.compose(raw, LOADER)
            if root:
                self._check(root, ())
            # To construct a value, PyYAML changes its nodes, so that this composes them anew.
            self.value: dict[str, Any] = yaml.load(raw, LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = (mark.line, mark.column) if mark else (0, 0)
            raise self._refused_whole(f"not valid YAML: {error.problem or ''}", *place) from None
        except yaml.reader.ReaderError as error:
            line = raw[: error.position].count(b"\n")
            detail = f"not valid YAML: {error.reason}; save it as UTF-8 text"
            raise self._refused_whole(detail, line) from None
        # For example, the 31st of February.
        except UNFIT as error:
            raise self._refused_whole(f"not valid YAML: {error}") from None
        except RecursionError:
            raise self._refused_whole("not valid YAML: it is nested too deeply") from None
        if root is None or not isinstance(self.value, dict):
            raise self._refused_whole("expected a mapping with the key 'applications' at the top")
        self._root = root

    def _refused_whole(self, detail: str, line: int = 0, column: int = 0) -> ConfigRefused:
        return ConfigRefused([Finding(str(self.path), line + 1, column + 1, "", detail)])

    @property
    def refusals(self) -> list[Finding]:
        """Errors in the file's order; reported once if aliases repeat the value."""
        by_place: dict[Any, Finding] = {}
        for _, problem in self.refused:
            by_place.setdefault((problem.line, problem.column, problem.detail), problem)
        return sorted(by_place.values(), key=PLACE)

    def finding(self, steps: Steps, detail: str, *, key: bool = False) -> Finding:
        """Return a finding at a value or its key, or at the nearest ancestor that the file has."""
        name = node = self._root
        for step in steps:
            found = _below(node, step)
            if found is None:
                return self._finding(steps, detail, node.start_mark)
            name, node = found
        return self._finding(steps, detail, (name if key else node).start_mark)

    def _finding(self, steps: Steps, detail: str, mark: yaml.Mark) -> Finding:
        return Finding(str(self.path), mark.line + 1, mark.column + 1, show(steps), detail)

    def _check(self, node: yaml.Node, steps: Steps) -> None:
        """Refuse what YAML allows but a configuration must not."""
        if (kind := node.tag.rpartition(":")[2]) in NOT_JSON:
            detail = f"YAML reads this as {NOT_JSON[kind]}, which Ray cannot pass on; put it in quotes"
            self._refuse(node, steps, detail)
        if isinstance(node, yaml.SequenceNode):
            for i, child in enumerate(node.value):
                self._check(child, (*steps, i))
        if isinstance(node, yaml.MappingNode):
            self._check_mapping(node, steps)

    def _check_mapping(self, node: yaml.MappingNode, steps: Steps) -> None:
        names = set()
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a mapping or list as a key; is this a template that was not rendered?"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            here = steps if key.tag == MERGE else (*steps, _key(key))
            if (key.tag, key.value) in names:
                self._refuse(key, here, f"the key {key.value!r} comes twice; leave one of them out")
            elif key.tag not in (STRING, MERGE):
                detail = f"YAML does not read the key {key.value} as a string; put it in quotes"
                self._refuse(key, here, detail)
            names.add((key.tag, key.value))
            for value in _merged(child) if key.tag == MERGE else [child]:
                self._check(value, here)

    def _refuse(self, node: yaml.Node, steps: Steps, detail: str) -> None:
        self.refused.append((steps, self._finding(steps, detail, node.start_mark)))


def show(steps: Steps) -> str:
    """Format a path as text: `applications[0].deployments[1].name`."""
    # True and False are keys, and numbers to `isinstance`.
    return "".join(f"[{step}]" if type(step) is int else f".{step}" for step in steps).lstrip(".")


def _below(node: yaml.Node, step: Any) -> tuple[yaml.Node, yaml.Node] | None:
    """Return the key and the value at a step below a node. For a list, both are the item."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    # A mapping's own keys override those that it merges, and an earlier merge overrides a later
    # one.
    own = (pair for pair in pairs if pair[0].tag != MERGE and _key(pair[0]) == step)
    merged = (_below(one, step) for key, child in pairs if key.tag == MERGE for one in _merged(child))
    return next((found for found in (*own, *merged) if found), None)


def _merged(node: yaml.Node) -> list[yaml.Node]:
    return node.value if isinstance(node, yaml.SequenceNode) else [node]


def _key(node: yaml.Node) -> Any:
    # Most keys are strings; a constructor for each would be slow.
    return node.value if node.tag == STRING else yaml.constructor.SafeConstructor().construct_document(node)
