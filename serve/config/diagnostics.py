"""Diagnostics of a configuration: all errors and warnings, each with its position."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from serve.config.yaml_positions import Document, Finding, Steps, show
from serve.contract.errors import TabrankError

Read = TypeVar("Read")


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

    @contextlib.contextmanager
    def noting(self, steps: Steps) -> Iterator[None]:
        """Add a TabrankError of the block as an error, at the path in its message or at `steps`."""
        try:
            yield
        except TabrankError as error:
            found, detail = self.document.split(str(error))
            related = found and (found[: len(steps)] == steps or found == steps[: len(found)])
            self.refuse(found if related else steps, detail if related else str(error))

    def reading(
        self,
        reader: Callable[[dict[str, Any], str], Read],
        steps: Steps,
        given: Mapping[str, Any],
        known: Iterable[str],
        filling: Mapping[str, Any],
    ) -> Read | None:
        """Read a mapping with `reader`; None if it is refused.

        Each key is first read alone, with `filling` for the others, so that every key gets its
        error. Keys that are not `known` are left out: the check of keys refuses them.
        """
        given = {key: value for key, value in given.items() if key in known}
        for key, value in given.items():
            if self.are_none((*steps, key)):
                with self.noting((*steps, key)):
                    reader({**filling, key: value}, show(steps))
        if self.are_none(steps):
            with self.noting(steps):
                return reader(given, show(steps))
        return None

    def _problem(self, steps: Steps, detail: str, place: tuple[int, int]) -> Finding:
        return Finding(str(self.document.path), *place, show(steps), detail)


def _place(problem: Finding) -> tuple[int, int]:
    return problem.line, problem.column
