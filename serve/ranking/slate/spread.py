"""Spread: keep candidates that share a value apart."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence

from serve.config.slate import Spread


class Spacing:
    """Places that the candidates of each value take, during one arrangement.

    `pinned` are the places of pins by value, ascending from 0.
    """

    def __init__(self, rule: Spread, pinned: Mapping[Hashable, list[int]]) -> None:
        self._most, self._within = rule.most, rule.within
        # Ascending, pinned ones included.
        self._places: dict[Hashable, list[int]] = {}
        self._pinned = pinned

    def closed(self) -> Iterator[tuple[int, int, Hashable]]:
        """Yield spans of places [begin, end) that pins alone close to others of a value."""
        for value, places in self._pinned.items():
            self._places[value] = [*places]
            for first, last in zip(places, places[self._most - 1 :], strict=False):
                if last - first < self._within:
                    yield max(last - self._within + 1, 0), first + self._within, value

    def take(self, value: Hashable, place: int) -> int:
        """Take a place, and return until which one, exclusive, others of the value must wait."""
        most, places = self._most, self._places.get(value)
        if places is None:
            self._places[value] = [place]
            return place + self._within if most == 1 else 0
        if not self._pinned:
            places.append(place)
            return places[-most] + self._within if len(places) >= most else 0
        insort(places, place)
        # No other may come between so many that are so near.
        at = places.index(place)
        runs = (places[i : i + most] for i in range(max(at - most + 1, 0), at + 1))
        near = (run[0] for run in runs if len(run) == most and run[-1] - run[0] < self._within)
        return max((first + self._within for first in near), default=0)


def counted(values: Sequence[Hashable], rule: Spread) -> list[Hashable]:
    """Return the values `[C]`, None for missing ones and those of too few to break the rule.

    A missing value is 0: candidates without one have nothing in common.
    """
    few = {value for value, num in Counter(values).items() if num <= rule.most} | {0}
    return [None if value in few else value for value in values]
