"""What a run sends and what it must hold: a load profile and an SLO, both read strictly from TOML."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from loadtest.errors import LoadtestError, unknown_key

PROFILES = Path(__file__).with_name("profiles.toml")
SLO = Path(__file__).with_name("slo.toml")
_Config = TypeVar("_Config", "Profile", "Slo")
MAX_CANDIDATES = 1000  # what POST /v1/rank takes


@dataclass(frozen=True)
class Profile:
    """A load: `target_rps` requests a second, Poisson, each with `candidates` candidates."""

    name: str
    target_rps: float
    candidates: int
    warmup_s: float
    duration_s: float
    viewer_skew: float

    def __post_init__(self) -> None:
        _check("target_rps", self.target_rps, self.target_rps > 0, "it must be above 0")
        whole = isinstance(self.candidates, int) and 1 <= self.candidates <= MAX_CANDIDATES
        _check("candidates", self.candidates, whole, f"it must be a whole number from 1 to {MAX_CANDIDATES}")
        _check("warmup_s", self.warmup_s, self.warmup_s >= 0, "it must be 0 or more")
        _check("duration_s", self.duration_s, self.duration_s > 0, "it must be above 0")
        _check("viewer_skew", self.viewer_skew, self.viewer_skew >= 0, "it must be 0 or more")
        enough = self.target_rps * self.duration_s >= 1
        _check(
            "duration_s",
            self.duration_s,
            enough,
            f"at {self.target_rps:g} req/s not one request is sent in it",
        )


@dataclass(frozen=True)
class Slo:
    """What must hold, and the lateness of the generator above which nothing can be said."""

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
    """A shipped profile by its name, or one from a TOML file by its path (`*.toml`), with `changes` made.

    Raises:
        LoadtestError: for an unknown name, an unreadable file, an unknown or missing key, or a bad value.
    """
    made = {key: value for key, value in changes.items() if value is not None}
    if name.endswith(".toml"):
        return _build(Profile, name, {**_read(Path(name)), **made}, name=Path(name).stem)
    shipped = _read(PROFILES)
    if name not in shipped:
        raise LoadtestError(f"no profile {name!r}; there are {', '.join(shipped)}, or name a .toml file")
    return _build(Profile, f"profile {name}", {**shipped[name], **made}, name=name)


def load_slo(path: Path | None = None) -> Slo:
    """The shipped SLO, with what the file at `path` says in its place.

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
    known = [field.name for field in fields(kind) if field.name not in given]
    for key, value in values.items():
        if key not in known:
            raise LoadtestError(unknown_key(where, key, known))
        if not (type(value) in (int, float) and math.isfinite(value)):
            raise LoadtestError(f"{where}: {key} is {value!r}; it must be a number")
    missing = [name for name in known if name not in values]
    if missing:
        raise LoadtestError(f"{where}: {missing[0]} is missing; the keys are {', '.join(known)}")
    try:
        return kind(**given, **values)
    except ValueError as error:
        raise LoadtestError(f"{where}: {error}") from None


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; {rule}")
