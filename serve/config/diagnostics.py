"""Diagnostics of a configuration: all errors and warnings, each with its position."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from serve.config.yaml_positions import Document, Finding, Steps, show
from serve.contract.typed_reader import Invalid, Model, read

# The order of findings in a file.
PLACE = attrgetter("line", "column")


class Findings:
    """Findings of one document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.root = Node(self, (), document.value)
        self.warnings: list[Finding] = []
        self.known: list[tuple[Steps, Finding]] = []
        for steps, mark, detail in document.oddities:
            self.known.append((steps, self.finding(steps, detail, (mark.line + 1, mark.column + 1))))

    @property
    def refusals(self) -> list[Finding]:
        """Errors in the file's order; reported once if aliases repeat the value."""
        by_place: dict[Any, Finding] = {}
        for _, problem in self.known:
            by_place.setdefault((problem.line, problem.column, problem.detail), problem)
        return sorted(by_place.values(), key=PLACE)

    def finding(self, steps: Steps, detail: str, at: tuple[int, int]) -> Finding:
        """Return a finding about the value at a path."""
        return Finding(str(self.document.path), *at, show(steps), detail)


@dataclass(frozen=True)
class Node:
    """Value at a path of a document, None if it is missing; takes the findings about it."""

    findings: Findings
    steps: Steps
    value: Any

    def __getitem__(self, step: Any) -> Node:
        """Return the node below a key or an index."""
        try:
            value = self.value[step]
        except (KeyError, IndexError, TypeError):
            value = None
        return Node(self.findings, (*self.steps, step), value)

    def items(self) -> list[Node]:
        """Return the items of a list; no item of any other value."""
        return [self[i] for i in range(len(self.value))] if isinstance(self.value, list) else []

    @property
    def is_sound(self) -> bool:
        """True if nothing at or below the path was refused."""
        return all(steps[: len(self.steps)] != self.steps for steps, _ in self.findings.known)

    def refuse(self, detail: str, *, key: bool = False) -> None:
        """Add an error of the value, or of its key, unless the path already has one."""
        if all(steps != self.steps for steps, _ in self.findings.known):
            at = self.findings.document.place(self.steps, key)
            self.findings.known.append((self.steps, self.findings.finding(self.steps, detail, at)))

    def miss(self, key: str, remedy: str) -> None:
        """Add an error for a missing key, unless a misspelt key stands for it."""
        meant = f"did you mean {key!r}?"
        if not any(
            steps[:-1] == self.steps and known.detail.endswith(meant) for steps, known in self.findings.known
        ):
            self[key].refuse(f"the key {key!r} is missing; {remedy}")

    def warn(self, detail: str) -> None:
        """Add a warning about the value."""
        at = self.findings.document.place(self.steps)
        self.findings.warnings.append(self.findings.finding(self.steps, detail, at))

    def read(self, model: type[Model], values: object, remedy: str) -> Model | None:
        """Read the `values` of this path into a dataclass; None if they are refused.

        `remedy` is the advice for a missing key.
        """
        try:
            found = read(model, values, show(self.steps))
        except Invalid as error:
            for problem in error.problems:
                node = self
                for step in problem.steps:
                    node = node[step]
                if problem.missing:
                    node.miss(problem.missing, remedy)
                else:
                    node.refuse(problem.detail)
        return found if self.is_sound else None
