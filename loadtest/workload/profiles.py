"""Load profiles and SLOs, both read from TOML with strict validation."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from loadtest.errors import LoadtestError
from loadtest.workload.shapes import Block, Shape, blocks, check_shape, read_shape, stretched
from serve.contract.errors import unknown_key

PROFILES = Path(__file__).parents[1] / "profiles.toml"
SLO = Path(__file__).parents[1] / "slo.toml"
_Config = TypeVar("_Config", "Profile", "Slo")
# Limit of POST /v1/rank.
MAX_CANDIDATES = 1000


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
        _check(
            "duration_s",
            self.duration_s,
            any(block.num_requests(self.target_rps) for block in blocks(self.line)),
            f"at {self.target_rps:g} req/s it is too short for one request",
        )

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
    if not (holds and math.isfinite(value)):
        raise ValueError(f"{name} is {value!r}; {rule}")
