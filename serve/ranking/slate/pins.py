"""Pins: candidates that a request puts at places of its own choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def pinned(others: Sequence[int], pins: Mapping[int, int]) -> list[int]:
    """Return the other candidates in their order, with each pinned candidate at its place.

    `pins` are candidates by place, from 0. Each place is below the number of all candidates.
    """
    order = list(others)
    for place in sorted(pins):
        order.insert(place, pins[place])
    return order
