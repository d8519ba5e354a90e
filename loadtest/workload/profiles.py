"""Load profiles with their shapes, and SLOs. Both are read from TOML and validated strictly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple

from loadtest.errors import LoadtestError
from serve.contract.rankings import MAX_CANDIDATES
from serve.contract.typed_reader import STRICT, Between, ItemName, read
from serve.contract.validation import toml_table

PROFILES = Path(__file__).parents[1] / "profiles.toml"
SLO = Path(__file__).parents[1] / "slo.toml"
# Candidates per request in all scenarios, as in the headline profile.
CANDIDATES = 55
# Seed of all random draws, so that two runs send the same requests.
SEED = 20
Number = Annotated[float, Between(0, 1e6)]
Positive = Annotated[float, Between(0.001, 1e6)]
Share = Annotated[float, Between(0, 1)]
# Points (second of the measurement, factor of the rate) in ascending order of seconds. Between two
# points the factor changes linearly. Two points at the same second are a jump: `((0, 1), (30, 1),
# (30, 2), (60, 2))` doubles the rate after 30 s.
Shape = tuple[tuple[Number, Number], ...]


@dataclass(frozen=True)
class Profile:
    """Load of `target_rps` requests per second, each with `candidates` candidates.

    The times of the requests are a Poisson process. A `shape` multiplies the rate over time;
    without a shape the rate is constant. `warmup_s` seconds of load come before the measurement and
    do not count. `viewer_skew` is the exponent of Zipf's distribution over the viewers.

    Raises:
        ValueError: if the shape does not fit `duration_s`, or the load has no request.
    """

    __pydantic_config__ = STRICT
    name: ItemName
    target_rps: Positive
    candidates: Annotated[int, Between(1, MAX_CANDIDATES)]
    warmup_s: Number
    duration_s: Positive
    viewer_skew: Number
    shape: Shape = ()

    def __post_init__(self) -> None:
        if self.shape:
            check_shape(self.shape, self.duration_s)
        if not any(block.num_requests(self.target_rps) for block in blocks(self.line)):
            rate = f"at {self.target_rps:g} req/s"
            raise ValueError(f"duration_s is {self.duration_s:g}; {rate} it is too short for one request")

    @property
    def line(self) -> Shape:
        """Return the shape; a profile without one has a constant factor of 1."""
        return self.shape or ((0.0, 1.0), (self.duration_s, 1.0))

    @property
    def offered_rps(self) -> float:
        """Return the mean rate of the measurement, in requests per second."""
        sent = sum(block.factor * block.seconds for block in blocks(self.line))
        return self.target_rps * sent / self.duration_s

    @property
    def blocks(self) -> list[Block]:
        """Return the blocks of the whole run.

        The first one is the warm-up, at the rate with which the measurement begins.
        """
        first = self.line[0][1]
        return [Block(self.warmup_s, first, first), *blocks(self.line)]


@dataclass(frozen=True)
class Slo:
    """Limits that a run must hold; `slo.toml` explains each.

    `generator_late_ms_p99` is not a limit of the service. Above it the measurement is invalid.
    """

    __pydantic_config__ = STRICT
    p90_ms: Number
    p99_ms: Number
    max_error_share: Share
    min_full_share: Share
    generator_late_ms_p99: Number

    def shares(self) -> list[tuple[str, float, float]]:
        """Return each limit of latency as (name, ms, share of requests that may take longer)."""
        limits = ((90, self.p90_ms), (99, self.p99_ms))
        return [(f"p{share} ≤ {ms:g} ms", ms, 1 - share / 100) for share, ms in limits]


def load_profile(name: str, **changes: float | None) -> Profile:
    """Return the shipped profile of this name, or the profile in the file if `name` ends in .toml.

    `changes` override values of the profile; None changes nothing. A changed `duration_s` stretches
    the shape.

    Raises:
        TabrankError: for an unknown name, an unreadable file, an unknown or missing key, or a bad
            value.
    """
    if name.endswith(".toml"):
        where, title, given = name, Path(name).stem, toml_table(Path(name))
    else:
        shipped = toml_table(PROFILES)
        if name not in shipped:
            raise LoadtestError(f"no profile {name!r}; use {', '.join(shipped)} or the path of a .toml file")
        where, title, given = f"profile {name}", name, shipped[name]
    shape = read(Profile, given, where, ": ").shape
    given |= {key: value for key, value in changes.items() if value is not None}
    if shape:
        given["shape"] = stretched(shape, given["duration_s"])
    return replace(read(Profile, given, where, ": "), name=title)


def load_slo(path: Path | None = None) -> Slo:
    """Return the shipped SLO, overridden by the values of the file at `path`.

    Raises:
        TabrankError: for an unreadable file, an unknown key or a bad value.
    """
    changed = toml_table(path) if path else {}
    return read(Slo, {**toml_table(SLO), **changed}, str(path or SLO.name), ": ")


class Block(NamedTuple):
    """Time span in which the factor of the rate changes linearly from `begins` to `ends`."""

    seconds: float
    begins: float = 1.0
    ends: float = 1.0

    @property
    def factor(self) -> float:
        """Return the mean factor."""
        return (self.begins + self.ends) / 2

    def num_requests(self, rate_rps: float) -> int:
        """Return the number of requests in the block, if the rate at factor 1 is `rate_rps`."""
        return round(rate_rps * self.factor * self.seconds)


class Phase(NamedTuple):
    """Part of a shape in which the rate is constant, rises or falls."""

    begins_s: float
    ends_s: float
    name: str


def check_shape(shape: Shape, duration_s: float) -> None:
    """Check that the shape spans the measurement and sends requests.

    Raises:
        ValueError: if it does not.
    """
    if len(shape) < 2 or shape[0][0] != 0 or not math.isclose(shape[-1][0], duration_s):
        ends = f"from {shape[0][0]:g} to {shape[-1][0]:g}" if shape else "over nothing"
        raise ValueError(f"shape goes {ends} s; it must go from 0 to duration_s, {duration_s:g}")
    for (before_s, _), (at_s, _) in pairwise(shape):
        if at_s < before_s:
            raise ValueError(f"shape has second {at_s:g} after {before_s:g}; its seconds must ascend")
    for (before_s, _), _, (at_s, _) in zip(shape, shape[1:], shape[2:], strict=False):
        if before_s == at_s:
            raise ValueError(f"shape has three points at second {at_s:g}; a jump has two points")
    if not any(block.factor for block in blocks(shape)):
        raise ValueError("shape must have a factor above 0")


def stretched(shape: Shape, duration_s: float) -> Shape:
    """Return the shape with its seconds scaled to another duration."""
    by = duration_s / shape[-1][0]
    return (*((at_s * by, factor) for at_s, factor in shape[:-1]), (duration_s, shape[-1][1]))


def blocks(shape: Shape) -> list[Block]:
    """Return the linear pieces of a shape, in order."""
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
    """Return a phase for each jump to a higher rate.

    It lasts until the rate falls below the new one, or until the shape ends.
    """
    found = []
    for i, ((before_s, low), (at_s, high)) in enumerate(pairwise(shape)):
        if at_s == before_s and high > low:
            rest: Sequence[tuple[float, float]] = shape[i + 1 :]
            lower = (to_s for (to_s, _), (_, factor) in pairwise(rest) if factor < high)
            found.append(Phase(at_s, next(lower, shape[-1][0]), f"×{low:g} to ×{high:g}"))
    return found
