"""Limit: show few candidates that meet conditions in the first places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from serve.config.slate import Limit
from serve.features.slots import I64, Bools
from serve.ranking.slate.spread import NONE
from serve.ranking.slate.where import Facts, meeting


class Quota:
    """Limit over one request; `met` `[C]` tells which candidates meet the conditions, by rank.

    They all have the same code. The limit is like a `Spacing` that looks only at the first places.
    """

    def __init__(self, rule: Limit, met: Bools) -> None:
        self.end, self._left, self._met = rule.first, rule.most, met

    @classmethod
    def of(cls, rule: Limit, facts: Facts, order: I64) -> Quota:
        """Return the limit over the candidates in this order."""
        return cls(rule, meeting(rule.where, facts, len(order))[order])

    def is_kept(self, num_shown: int) -> bool:
        """Return True if the order by rank keeps the rule at the shown places."""
        return bool(np.count_nonzero(self._met[: min(self.end, num_shown)]) <= self._left)

    def codes(self, first: int) -> list[int]:
        """Return codes `[C]`: `first`, or NONE for candidates that do not meet the conditions.

        Return [] if so few meet them that the rule cannot be broken.
        """
        self._code = first
        codes: list[int] = np.where(self._met, first, NONE).tolist()
        return codes if np.count_nonzero(self._met) > self._left else []

    def pin(self, pinned: Mapping[int, list[int]]) -> Iterator[tuple[int, int, int]]:
        """Take the places of pins; yield the first places if pins, or a limit of 0, use them up."""
        self._left -= sum(place < self.end for places in pinned.values() for place in places)
        if self._left <= 0:
            yield 0, self.end, self._code

    def take(self, code: int, place: int) -> int:
        """Take a place; return the place before which no other candidate of the code may come."""
        self._left -= 1
        return self.end if self._left <= 0 else 0
