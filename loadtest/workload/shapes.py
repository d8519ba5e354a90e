"""Shapes of a load: piecewise linear factors of its rate over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

Shape = tuple[tuple[float, float], ...]
"""Ascending points (second of the measurement, factor of the rate); a jump is two at one second."""


class Block(NamedTuple):
    """Seconds in which the factor of the rate changes linearly from `begins` to `ends`."""

    seconds: float
    begins: float = 1.0
    ends: float = 1.0

    @property
    def factor(self) -> float:
        """Return the mean factor."""
        return (self.begins + self.ends) / 2

    def num_requests(self, rate_rps: float) -> int:
        """Return the number of requests in the block; `rate_rps` is the rate at factor 1."""
        return round(rate_rps * self.factor * self.seconds)


class Phase(NamedTuple):
    """Part of a shape in which the rate is constant, rises or falls."""

    begins_s: float
    ends_s: float
    name: str


def read_shape(value: object) -> Shape:
    """Return the points of a list such as `[[0, 1], [30, 1], [30, 2], [90, 2]]`.

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
    """Raise `ValueError` unless the shape spans the measurement and sends requests."""
    if len(shape) < 2 or shape[0][0] != 0 or not math.isclose(shape[-1][0], duration_s):
        ends = f"from {shape[0][0]:g} to {shape[-1][0]:g}" if shape else "over nothing"
        raise ValueError(f"shape goes {ends} s; it must go from 0 to duration_s, {duration_s:g}")
    for (before_s, _), (at_s, _) in pairwise(shape):
        if at_s < before_s:
            raise ValueError(f"shape has second {at_s:g} after {before_s:g}; its seconds must ascend")
    for (before_s, _), _, (at_s, _) in zip(shape, shape[1:], shape[2:], strict=False):
        if before_s == at_s:
            raise ValueError(f"shape has three points at second {at_s:g}; a jump has two points")
    if min(factor for _, factor in shape) < 0 or not any(block.factor for block in blocks(shape)):
        raise ValueError("shape must have factors of 0 or more, and not all 0")


def stretched(shape: Shape, duration_s: float) -> Shape:
    """Return the same shape over another duration."""
    by = duration_s / shape[-1][0]
    return (*((at_s * by, factor) for at_s, factor in shape[:-1]), (duration_s, shape[-1][1]))


def blocks(shape: Shape) -> list[Block]:
    """Return the linear pieces, in order."""
    pieces = [Block(to_s - at_s, begins, ends) for (at_s, begins), (to_s, ends) in pairwise(shape)]
    return [piece for piece in pieces if piece.seconds > 0]


def phases(shape: Shape) -> list[Phase]:
    """Return the phases of a shape; consecutive pieces in one direction form one phase."""
    found: list[Phase] = []
    at_s, last = 0.0, 0.0
    for piece in blocks(shape):
        direction = (piece.ends > piece.begins) - (piece.ends < piece.begins)
        begins_s, name = at_s, ("falls", f"×{piece.begins:g}", "rises")[direction + 1]
        if found and found[-1].name == name and math.isclose(piece.begins, last):
            begins_s = found.pop().begins_s
        at_s, last = at_s + piece.seconds, piece.ends
        found.append(Phase(begins_s, at_s, name))
    return found


def steps_up(shape: Shape) -> list[Phase]:
    """Return the jumps to a higher rate, each until the rate is lowered or the shape ends."""
    found = []
    for i, ((before_s, low), (at_s, high)) in enumerate(pairwise(shape)):
        if at_s == before_s and high > low:
            rest: Sequence[tuple[float, float]] = shape[i + 1 :]
            lower = (to_s for (to_s, _), (_, factor) in pairwise(rest) if factor < high)
            found.append(Phase(at_s, next(lower, shape[-1][0]), f"×{low:g} to ×{high:g}"))
    return found


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
