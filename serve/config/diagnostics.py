"""Diagnostics of a configuration: all errors and warnings, each with its position."""

from __future__ import annotations

from typing import Any

from serve.config.yaml_positions import Document, Finding, Steps, show
from serve.contract.typed_reader import Invalid, Model, read


class Findings:
    """Findings of one document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._refusals: list[tuple[Steps, Finding]] = []
        self._warnings: list[Finding] = []
        for steps, mark, detail in document.oddities:
            self._refusals.append((steps, self._problem(steps, detail, (mark.line + 1, mark.column + 1))))

    @property
    def num_refused(self) -> int:
        """The number of errors so far."""
        return len(self._refusals)

    @property
    def refusals(self) -> list[Finding]:
        """Errors in the file's order; reported once if aliases repeat the value."""
        by_place: dict[Any, Finding] = {}
        for _, problem in self._refusals:
            by_place.setdefault((problem.line, problem.column, problem.detail), problem)
        return sorted(by_place.values(), key=_place)

    @property
    def warnings(self) -> list[Finding]:
        """Warnings in the file's order."""
        return sorted(self._warnings, key=_place)

    def refuse(self, steps: Steps, detail: str, *, key: bool = False) -> None:
        """Add an error of the value at a path, or of its key, unless the path already has one."""
        if all(known != steps for known, _ in self._refusals):
            self._refusals.append((steps, self._problem(steps, detail, self.document.place(steps, key))))

    def miss(self, steps: Steps, key: str, remedy: str) -> None:
        """Add an error for a missing key, unless a misspelt key stands for it."""
        meant = f"did you mean {key!r}?"
        if not any(
            known[:-1] == steps and problem.detail.endswith(meant) for known, problem in self._refusals
        ):
            self.refuse((*steps, key), f"the key {key!r} is missing; {remedy}")

    def warn(self, steps: Steps, detail: str) -> None:
        """Add a warning about the value at a path."""
        self._warnings.append(self._problem(steps, detail, self.document.place(steps)))

    def are_none(self, steps: Steps = ()) -> bool:
        """Return True if nothing at or below a path was refused."""
        return all(known[: len(steps)] != steps for known, _ in self._refusals)

    def read(self, model: type[Model], steps: Steps, values: object, remedy: str) -> Model | None:
        """Read the values of a path into a dataclass; None if they are refused.

        `remedy` is the advice for a missing key.
        """
        try:
            found = read(model, values, show(steps))
        except Invalid as error:
            for problem in error.problems:
                here = (*steps, *problem.steps)
                if problem.missing:
                    self.miss(here, problem.missing, remedy)
                else:
                    self.refuse(here, problem.detail)
        return found if self.are_none(steps) else None

    def _problem(self, steps: Steps, detail: str, place: tuple[int, int]) -> Finding:
        return Finding(str(self.document.path), *place, show(steps), detail)


def _place(problem: Finding) -> tuple[int, int]:
    return problem.line, problem.column
