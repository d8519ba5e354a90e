"""What is wrong with a configuration, and what is only unwise: each at its place, all told at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from serve.config.yaml_positions import Document, Problem, Steps, show
from serve.contract.errors import TabrankError

Read = TypeVar("Read")


class Findings:
    """The problems of one document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._refusals: list[tuple[Steps, Problem]] = []
        self._warnings: list[Problem] = []
        for steps, mark, detail in document.oddities:
            self._refusals.append((steps, self._problem(steps, detail, (mark.line + 1, mark.column + 1))))

    @property
    def num_refused(self) -> int:
        """How many problems there are so far."""
        return len(self._refusals)

    @property
    def refusals(self) -> list[Problem]:
        """What makes the file unfit, in its order; once, where aliases bring it into several places."""
        by_place: dict[Any, Problem] = {}
        for _, problem in self._refusals:
            by_place.setdefault((problem.line, problem.column, problem.detail), problem)
        return sorted(by_place.values(), key=_place)

    @property
    def warnings(self) -> list[Problem]:
        """What is unwise, in the file's order."""
        return sorted(self._warnings, key=_place)

    def refuse(self, steps: Steps, detail: str, *, key: bool = False) -> None:
        """Note a problem of the value at a path (or of its key), unless one is known there."""
        if all(known != steps for known, _ in self._refusals):
            self._refusals.append((steps, self._problem(steps, detail, self.document.place(steps, key))))

    def miss(self, steps: Steps, key: str, remedy: str) -> None:
        """Note that a mapping lacks a key, unless a misspelt one stands for it."""
        meant = f"did you mean {key!r}?"
        if not any(
            known[:-1] == steps and problem.detail.endswith(meant) for known, problem in self._refusals
        ):
            self.refuse((*steps, key), f"the key {key!r} is missing; {remedy}")

    def warn(self, steps: Steps, detail: str) -> None:
        """Note what is unwise."""
        self._warnings.append(self._problem(steps, detail, self.document.place(steps)))

    def are_none(self, steps: Steps = ()) -> bool:
        """Whether nothing at or below a path was refused."""
        return all(known[: len(steps)] != steps for known, _ in self._refusals)

    @contextlib.contextmanager
    def noting(self, steps: Steps) -> Iterator[None]:
        """Note a TabrankError of the block, where its message says, or at `steps`."""
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
        """What `reader` makes of a mapping; None if it refuses it, key by key (`filling` stands for the others).

        Keys that are not `known` are left out: they are refused by the check of keys.
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

    def _problem(self, steps: Steps, detail: str, place: tuple[int, int]) -> Problem:
        return Problem(str(self.document.path), *place, show(steps), detail)


def _place(problem: Problem) -> tuple[int, int]:
    return problem.line, problem.column
