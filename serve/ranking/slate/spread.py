"""Spread: keep candidates that share a value apart."""

from __future__ import annotations

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from serve.config.slate import Spread

# Code of a candidate that a rule does not count.
NONE = -1


class Spacing:
    """Places that the candidates of each value take, in ascending order.

    `pinned` are the places of pins by the code of the value, ascending from 0.
    """

    def __init__(self, rule: Spread, pinned: Mapping[int, list[int]]) -> None:
        self._most, self._within = rule.most, rule.within
        # Ascending, pinned ones included.
        self._places: defaultdict[int, list[int]] = defaultdict(list, pinned)
        self.take = self._take_among_pins if pinned else self._take

    def closed(self) -> Iterator[tuple[int, int, int]]:
        """Yield spans of places [begin, end) that pins alone close to others of a code."""
        for code, places in self._places.items():
            for first, last in zip(places, places[self._most - 1 :], strict=False):
                if last - first < self._within:
                    yield max(last - self._within + 1, 0), first + self._within, code

    def _take(self, code: int, place: int) -> int:
        """Take a place, and return until which one, exclusive, others of the code must wait."""
        places = self._places[code]
        places.append(place)
        return places[-self._most] + self._within if len(places) >= self._most else 0

    def _take_among_pins(self, code: int, place: int) -> int:
        places, most = self._places[code], self._most
        insort(places, place)
        # No other may come between so many that are so near.
        at = places.index(place)
        runs = (places[i : i + most] for i in range(max(at - most + 1, 0), at + 1))
        near = (run[0] for run in runs if len(run) == most and run[-1] - run[0] < self._within)
        return max((first + self._within for first in near), default=0)


def counted(values: Sequence[int], rule: Spread) -> list[int]:
    """Return a code `[C]` for each value, NONE for missing ones and those of too few candidates.

    So few cannot break the rule. A missing value is 0: candidates without one share nothing.
    """
    many = (value for value, num in Counter(values).items() if num > rule.most and value)
    code_of = {value: code for code, value in enumerate(many)}
    return [code_of.get(value, NONE) for value in values]
