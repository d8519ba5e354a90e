"""Spread: keep candidates that share a value apart."""

from __future__ import annotations

from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat

from serve.config.slate import Spread

# Code of a candidate that a rule does not count, and a place that no request has.
NONE, NEVER = -1, 1 << 30


class Spacing:
    """Spread over one request; `values` `[C]` are those of its candidates by rank, 0 if missing."""

    # The place from which the rule changes nothing.
    end = NEVER

    def __init__(self, rule: Spread, values: Sequence[int]) -> None:
        self._most, self._within, self._values = rule.most, rule.within, values
        # Ascending places by code, pinned ones included.
        self._places: defaultdict[int, list[int]] = defaultdict(list)
        self.take: Callable[[int, int], int] = self._take_last if rule.most == 1 else self._take

    def is_kept(self, num_shown: int) -> bool:
        """Return whether the first ranks keep the rule as they are."""
        values = self._values[:num_shown]
        # Mostly each has one of its own.
        if len(set(values)) == len(values):
            return True
        places: defaultdict[int, list[int]] = defaultdict(list)
        for place, value in enumerate(values):
            before = places[value]
            if value and len(before) >= self._most and place - before[-self._most] < self._within:
                return False
            before.append(place)
        return True

    def codes(self, first: int) -> list[int]:
        """Return a code `[C]` for each value, NONE for a missing one or one of too few candidates.

        The codes begin at `first`. So few cannot break the rule: it is [] if all are. Candidates
        without a value share none.
        """
        values = self._values
        many = (value for value, num in Counter(values).items() if num > self._most and value)
        code_of = {value: code for code, value in enumerate(many, first)}
        return list(map(code_of.get, values, repeat(NONE))) if code_of else []

    def pin(self, pinned: Mapping[int, list[int]]) -> Iterator[tuple[int, int, int]]:
        """Take the places of pins, ascending by code.

        Yields spans of places [begin, end) that pins alone close to others of a code.
        """
        self._places |= pinned
        if pinned:
            self.take = self._take_among_pins
        for code, places in pinned.items():
            for first, last in zip(places, places[self._most - 1 :], strict=False):
                if last - first < self._within:
                    yield max(last - self._within + 1, 0), first + self._within, code

    def _take(self, code: int, place: int) -> int:
        """Take a place, and return until which one, exclusive, others of the code must wait."""
        places = self._places[code]
        places.append(place)
        return places[-self._most] + self._within if len(places) >= self._most else 0

    def _take_last(self, code: int, place: int) -> int:
        """Take a place if one candidate is the most; a third of the time of a spread goes to it."""
        return place + self._within

    def _take_among_pins(self, code: int, place: int) -> int:
        """Take a place; no other may come between so many that are so near."""
        most, places = self._most, self._places[code]
        at = bisect(places, place)
        places.insert(at, place)
        # The place is one of the `most` that begin here, the last ones first.
        begins = range(min(at, len(places) - most), max(at - most, -1), -1)
        near = (places[i] for i in begins if places[i + most - 1] - places[i] < self._within)
        return next(near, -self._within) + self._within
