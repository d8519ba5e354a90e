"""Nodes of a configuration: a value with its path, which takes the errors and warnings about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serve.config.yaml_positions import Document, Steps, show
from serve.contract.typed_reader import Invalid, Model, read


@dataclass(frozen=True)
class Node:
    """Value at a path of a document, or None if it is missing; collects the findings about it."""

    document: Document
    steps: Steps
    value: Any

    @classmethod
    def root(cls, document: Document) -> Node:
        """Return the node of the whole document."""
        return cls(document, (), document.value)

    def __getitem__(self, step: Any) -> Node:
        """Return the node below a key or an index."""
        try:
            value = self.value[step]
        except (KeyError, IndexError, TypeError):
            value = None
        return Node(self.document, (*self.steps, step), value)

    def items(self) -> list[Node]:
        """Return the items of a list; any other value has none."""
        return [self[i] for i in range(len(self.value))] if isinstance(self.value, list) else []

    @property
    def is_sound(self) -> bool:
        """True if nothing at or below the path was refused."""
        return all(steps[: len(self.steps)] != self.steps for steps, _ in self.document.refused)

    def refuse(self, detail: str, *, key: bool = False) -> None:
        """Add an error of the value, or of its key, unless the path already has one."""
        if all(steps != self.steps for steps, _ in self.document.refused):
            finding = self.document.finding(self.steps, detail, key=key)
            self.document.refused.append((self.steps, finding))

    def miss(self, key: str, remedy: str) -> None:
        """Add an error for a missing key, unless a misspelt key stands for it."""
        beside = [known.detail for steps, known in self.document.refused if steps[:-1] == self.steps]
        if not any(detail.endswith(f"did you mean {key!r}?") for detail in beside):
            self[key].refuse(f"the key {key!r} is missing; {remedy}")

    def warn(self, detail: str) -> None:
        """Add a warning about the value."""
        self.document.warnings.append(self.document.finding(self.steps, detail))

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
