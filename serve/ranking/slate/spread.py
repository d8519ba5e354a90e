"""Spread: keep candidates that share a value apart."""

from __future__ import annotations

from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat

from serve.config.slate import Spread
from serve.features.slots import I64
from serve.ranking.slate.where import Facts

# The code of a candidate that a rule does not count, and a place beyond those of any request.
NONE, NEVER = -1, 1 << 30


class Spacing:
    """Spread over one request; `values` `[C]` are its candidates' values by rank, 0 if missing."""

    # The place from which on the rule changes nothing.
    end = NEVER

    def __init__(self, rule: Spread, values: Sequence[int]) -> None:
        self._most, self._within, self._values = rule.most, rule.within, values
        # The places taken by each code, ascending, those of pins included.
        self._places: defaultdict[int, list[int]] = defaultdict(list)
        self.take: Callable[[int, int], int] = self._take_last if rule.most == 1 else self._take

    @classmethod
    def of(cls, rule: Spread, facts: Facts, order: I64) -> Spacing:
        """Return the spread over the candidates in this order."""
        return cls(rule, facts(rule.field)[order].tolist())

    def is_kept(self, num_shown: int) -> bool:
        """Return True if the order by rank keeps the rule at the shown places."""
        values = self._values[:num_shown]
        # Mostly, each candidate has a value of its own.
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
        """Return codes `[C]`: from `first` on, one for each value that could break the rule.

        The code is NONE for a missing value, and for a value of so few candidates that they cannot
        break the rule. Return [] if this is so for all.
        """
        values = self._values
        many = (value for value, num in Counter(values).items() if num > self._most and value)
        code_of = {value: code for code, value in enumerate(many, first)}
        return list(map(code_of.get, values, repeat(NONE))) if code_of else []

    def pin(self, pinned: Mapping[int, list[int]]) -> Iterator[tuple[int, int, int]]:
        """Take the places of pins, which are ascending for each code.

        Yield (begin, end, code) for spans of places [begin, end) at which, because of pins alone,
        no other candidate with the code may come.
        """
        self._places |= pinned
        if pinned:
            self.take = self._take_among_pins
        for code, places in pinned.items():
            for first, last in zip(places, places[self._most - 1 :], strict=False):
                if last - first < self._within:
                    yield max(last - self._within + 1, 0), first + self._within, code

    def _take(self, code: int, place: int) -> int:
        """Take a place; return the place before which no other candidate of the code may come."""
        places = self._places[code]
        places.append(place)
        return places[-self._most] + self._within if len(places) >= self._most else 0

    def _take_last(self, code: int, place: int) -> int:
        """Take a place if `most` is 1; this is short, as a third of a spread's time goes here."""
        return place + self._within

    def _take_among_pins(self, code: int, place: int) -> int:
        """Take a place, like `_take`, but with pins that may come later."""
        most, places = self._most, self._places[code]
        at = bisect(places, place)
        places.insert(at, place)
        # Look at each run of `most` taken places that includes this one, the last run first.
        begins = range(min(at, len(places) - most), max(at - most, -1), -1)
        near = (places[i] for i in begins if places[i + most - 1] - places[i] < self._within)
        return next(near, -self._within) + self._within
