"""The shape of a load: factors of its rate over time, in straight pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

Shape = tuple[tuple[float, float], ...]
"""(second of the measurement, factor of the rate), ascending; two points at one second are a jump."""


class Block(NamedTuple):
    """Seconds in which the rate goes in a straight line from one factor to another."""

    seconds: float
    begins: float = 1.0
    ends: float = 1.0

    @property
    def factor(self) -> float:
        """Its mean."""
        return (self.begins + self.ends) / 2

    def num_requests(self, rate_rps: float) -> int:
        """How many are sent in it, at a rate that its factors multiply."""
        return round(rate_rps * self.factor * self.seconds)


class Phase(NamedTuple):
    """A part of a shape in which the rate stands, rises or falls."""

    begins_s: float
    ends_s: float
    name: str


def read_shape(value: object) -> Shape:
    """The points of a list such as `[[0, 1], [30, 1], [30, 2], [90, 2]]`.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"shape is {value!r}; it must be a list of [second, factor] pairs of numbers")
    points = []
    for point in value:
        if not (isinstance(point, list | tuple) and len(point) == 2 and all(map(_is_number, point))):
            raise ValueError(f"shape holds {point!r}; it must be a list of [second, factor] pairs of numbers")
        points.append((float(point[0]), float(point[1])))
    return tuple(points)


def check_shape(shape: Shape, duration_s: float) -> None:
    """Raise `ValueError` unless the shape spans the measurement and asks for something."""
    if len(shape) < 2 or shape[0][0] != 0 or not math.isclose(shape[-1][0], duration_s):
        ends = f"from {shape[0][0]:g} to {shape[-1][0]:g}" if shape else "over nothing"
        raise ValueError(f"shape goes {ends} s; it must go from 0 to duration_s, {duration_s:g}")
    for (before_s, _), (at_s, _) in pairwise(shape):
        if at_s < before_s:
            raise ValueError(f"shape has second {at_s:g} after {before_s:g}; its seconds must ascend")
    for (before_s, _), _, (at_s, _) in zip(shape, shape[1:], shape[2:], strict=False):
        if before_s == at_s:
            raise ValueError(f"shape has three points at second {at_s:g}; a jump is two")
    if min(factor for _, factor in shape) < 0 or not any(block.factor for block in blocks(shape)):
        raise ValueError("shape must have factors of 0 or more, and not all 0")


def stretched(shape: Shape, duration_s: float) -> Shape:
    """The same shape over another duration."""
    by = duration_s / shape[-1][0]
    return (*((at_s * by, factor) for at_s, factor in shape[:-1]), (duration_s, shape[-1][1]))


def blocks(shape: Shape) -> list[Block]:
    """The straight pieces, in order."""
    pieces = [Block(to_s - at_s, begins, ends) for (at_s, begins), (to_s, ends) in pairwise(shape)]
    return [piece for piece in pieces if piece.seconds > 0]


def phases(shape: Shape) -> list[Phase]:
    """The parts of a shape; pieces that follow each other in one direction are one: a day's rise and its fall."""
    found: list[Phase] = []
    at_s, last = 0.0, 0.0
    for piece in blocks(shape):
        turn = (piece.ends > piece.begins) - (piece.ends < piece.begins)
        begins_s, name = at_s, ("falls", f"×{piece.begins:g}", "rises")[turn + 1]
        if found and found[-1].name == name and math.isclose(piece.begins, last):
            begins_s = found.pop().begins_s
        at_s, last = at_s + piece.seconds, piece.ends
        found.append(Phase(begins_s, at_s, name))
    return found


def steps_up(shape: Shape) -> list[Phase]:
    """The jumps to a higher rate, each with the time until the rate is lowered again or the shape ends."""
    found = []
    for i, ((before_s, low), (at_s, high)) in enumerate(pairwise(shape)):
        if at_s == before_s and high > low:
            rest: Sequence[tuple[float, float]] = shape[i + 1 :]
            lower = (to_s for (to_s, _), (_, factor) in pairwise(rest) if factor < high)
            found.append(Phase(at_s, next(lower, shape[-1][0]), f"×{low:g} to ×{high:g}"))
    return found


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
