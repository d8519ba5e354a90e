"""Limit: show few candidates that meet conditions in the first places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from serve.config.slate import Limit


class Quota:
    """Places that the candidates which meet the conditions take; they share the code 0.

    It is like a `Spacing` of which only the first places are a row.
    """

    def __init__(self, rule: Limit, pinned: Mapping[int, list[int]]) -> None:
        self._first = rule.first
        self._left = rule.most - sum(place < rule.first for place in pinned.get(0, ()))

    def closed(self) -> Iterator[tuple[int, int, int]]:
        """Yield the first places if pins, or a limit of 0, close them."""
        if self._left <= 0:
            yield 0, self._first, 0

    def take(self, code: int, place: int) -> int:
        """Take a place, and return until which one, exclusive, others must wait."""
        self._left -= 1
        return self._first if self._left <= 0 else 0
