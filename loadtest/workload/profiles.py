"""Load profiles with their shapes, and SLOs, both read from TOML with strict validation."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from loadtest.errors import LoadtestError
from serve.contract.errors import unknown_key

PROFILES = Path(__file__).parents[1] / "profiles.toml"
SLO = Path(__file__).parents[1] / "slo.toml"
_Config = TypeVar("_Config", "Profile", "Slo")
# Limit of POST /v1/rank.
MAX_CANDIDATES = 1000
Shape = tuple[tuple[float, float], ...]
"""Ascending points (second of the measurement, factor of the rate); a jump is two at one second."""


@dataclass(frozen=True)
class Profile:
    """Load of `target_rps` requests per second (Poisson), each with `candidates` candidates.

    A `shape` multiplies the rate over time. Without a shape the rate is constant.
    """

    name: str
    target_rps: float
    candidates: int
    warmup_s: float
    duration_s: float
    viewer_skew: float
    shape: Shape = ()

    def __post_init__(self) -> None:
        _check("target_rps", self.target_rps, self.target_rps > 0, "it must be above 0")
        whole = isinstance(self.candidates, int) and 1 <= self.candidates <= MAX_CANDIDATES
        _check("candidates", self.candidates, whole, f"it must be a whole number from 1 to {MAX_CANDIDATES}")
        _check("warmup_s", self.warmup_s, self.warmup_s >= 0, "it must be 0 or more")
        _check("duration_s", self.duration_s, self.duration_s > 0, "it must be above 0")
        _check("viewer_skew", self.viewer_skew, self.viewer_skew >= 0, "it must be 0 or more")
        if self.shape:
            check_shape(self.shape, self.duration_s)
        sends = any(block.num_requests(self.target_rps) for block in blocks(self.line))
        short = f"at {self.target_rps:g} req/s it is too short for one request"
        _check("duration_s", self.duration_s, sends, short)

    @property
    def line(self) -> Shape:
        """Return the shape; a profile without one has a constant factor of 1."""
        return self.shape or ((0.0, 1.0), (self.duration_s, 1.0))

    @property
    def offered_rps(self) -> float:
        """Return the mean rate of the measurement."""
        sent = sum(block.factor * block.seconds for block in blocks(self.line))
        return self.target_rps * sent / self.duration_s

    @property
    def blocks(self) -> list[Block]:
        """Return the blocks of the run; the warm-up has the first rate of the measurement."""
        first = self.line[0][1]
        return [Block(self.warmup_s, first, first), *blocks(self.line)]


@dataclass(frozen=True)
class Slo:
    """Limits of a run, and the generator lateness above which the measurement is invalid."""

    p90_ms: float
    p99_ms: float
    max_error_share: float
    min_full_share: float
    generator_late_ms_p99: float

    def __post_init__(self) -> None:
        for name in ("p90_ms", "p99_ms", "generator_late_ms_p99"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "it must be 0 or more milliseconds")
        for name in ("max_error_share", "min_full_share"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "it must be a share from 0 to 1")


def load_profile(name: str, **changes: float | None) -> Profile:
    """Return a shipped profile by its name or a profile from a `*.toml` path, with overrides.

    A `duration_s` in `changes` stretches the shape.

    Raises:
        LoadtestError: for an unknown name, an unreadable file, an unknown or missing key, or a bad
            value.
    """
    if name.endswith(".toml"):
        where, title, given = name, Path(name).stem, _read(Path(name))
    else:
        shipped = _read(PROFILES)
        if name not in shipped:
            raise LoadtestError(f"no profile {name!r}; use {', '.join(shipped)} or the path of a .toml file")
        where, title, given = f"profile {name}", name, shipped[name]
    made: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    try:
        shape = read_shape(given.pop("shape", ()))
        profile = _build(Profile, where, given, name=title, shape=shape)
        if shape and "duration_s" in made:
            made["shape"] = stretched(shape, made["duration_s"])
        return replace(profile, **made)
    except ValueError as error:
        raise LoadtestError(f"{where}: {error}") from None


def load_slo(path: Path | None = None) -> Slo:
    """Return the shipped SLO, overridden by the values of the file at `path`.

    Raises:
        LoadtestError: for an unreadable file, an unknown key or a bad value.
    """
    changed = _read(path) if path else {}
    return _build(Slo, str(path or SLO.name), {**_read(SLO), **changed})


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadtestError(f"{path}: cannot be read ({error.strerror}); name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LoadtestError(f"{path}: not TOML: {error}") from None


def _build(kind: type[_Config], where: str, values: Mapping[str, Any], **given: Any) -> _Config:
    known: list[str] = [field.name for field in fields(kind) if field.name not in given]
    named: list[str] = known + [name for name in given if name != "name"]
    for key, value in values.items():
        if key not in known:
            raise LoadtestError(unknown_key(where, key, named))
        if not (type(value) in (int, float) and math.isfinite(value)):
            raise LoadtestError(f"{where}: {key} is {value!r}; it must be a number")
    missing = [name for name in known if name not in values]
    if missing:
        raise LoadtestError(f"{where}: {missing[0]} is missing; the keys are {', '.join(known)}")
    try:
        return kind(**given, **values)
    except ValueError as error:
        raise LoadtestError(f"{where}: {error}") from None


def _check(name: str, value: float, holds: bool, rule: str) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; it must be a number")
    if not holds:
        raise ValueError(f"{name} is {value!r}; {rule}")


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
