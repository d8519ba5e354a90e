"""Limit: show few candidates that meet conditions in the first places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from serve.config.slate import Limit
from serve.features.slots import Bools
from serve.ranking.slate.spread import NONE


class Quota:
    """Limit over one request; `met` `[C]` tells which candidates meet the conditions, by rank.

    These have one code. It is like a `Spacing` of which only the first places are a row.
    """

    def __init__(self, rule: Limit, met: Bools) -> None:
        self.end, self._left, self._met = rule.first, rule.most, met

    def is_kept(self, num_shown: int) -> bool:
        """Return whether the first ranks keep the rule as they are."""
        return bool(np.count_nonzero(self._met[: min(self.end, num_shown)]) <= self._left)

    def codes(self, first: int) -> list[int]:
        """Return the code `first` or, for those that do not meet the conditions, NONE `[C]`.

        It is [] if few meet them.
        """
        self._code = first
        codes: list[int] = np.where(self._met, first, NONE).tolist()
        return codes if np.count_nonzero(self._met) > self._left else []

    def pin(self, pinned: Mapping[int, list[int]]) -> Iterator[tuple[int, int, int]]:
        """Take the places of pins; yield the first places if these, or a limit of 0, close them."""
        self._left -= sum(place < self.end for places in pinned.values() for place in places)
        if self._left <= 0:
            yield 0, self.end, self._code

    def take(self, code: int, place: int) -> int:
        """Take a place, and return until which one, exclusive, others must wait."""
        self._left -= 1
        return self.end if self._left <= 0 else 0
