"""Our settings in `cluster.yaml`: `args` rebuild the application, `user_config` changes live."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from serve.contract.errors import TabrankError
from serve.contract.messages import nearest
from serve.contract.validation import milliseconds, number, one_of, table, typed, whole
from serve.features.surface import Surface, load_surface
from serve.model.scorer_cache import MAX_VERSIONS
from serve.model.scorers import Backend

Clock = Literal["wall", "event"]
ARGS = ("surface", "store", "models", "log", "keep_log_days", "backend", "clock")
# Name of an artifact's version.
VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")
# Metrics of an experiment's report.
METRICS = ("active_days", "join_rate", "clicks", "joins", "minutes")
POPULAR, CURRENT, CANARY, SHUFFLE, NOOP = "popular", "current", "canary", "shuffle", "noop"
HEURISTICS = (POPULAR, SHUFFLE, NOOP)
# The arm of the viewers who take part in no experiment.
HOLDOUT = "holdout"
EXPERIMENT_KEYS = ("name", "salt", "arms", "holdout", "start", "end", "primary", "smallest_effect")
ARM_KEYS = ("scorer", "share", "explore")
API_KEY_KEYS = ("sha256", "requests_per_s", "may_choose_arm")
SHADOW_KEYS = ("version", "share")
NO_KEY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class AppArgs:
    """The application's `args`. Paths are relative to the folder of `cluster.yaml`."""

    surface: str
    store: str = "lmdb:var/store"
    models: str = "var/models"
    log: str = "var/log"
    backend: Backend = "onnx"
    clock: Clock = "wall"
    # Delete older segments and keep a snapshot in their place; 0 keeps all.
    keep_log_days: int = 30

    def load_surface(self, base: Path) -> Surface:
        """Load the surface: a shipped one, or a TOML file beside `cluster.yaml`."""
        return load_surface(str(base / self.surface) if self.surface.endswith(".toml") else self.surface)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "args") -> AppArgs:
        """Read strictly; raise TabrankError with key, value and remedy."""
        given = table(dict(values), where, ARGS, ("surface",))
        backend = one_of(given.get("backend", "onnx"), get_args(Backend), f"{where}.backend")
        clock = one_of(given.get("clock", "wall"), get_args(Clock), f"{where}.clock")
        return cls(
            surface=typed(given["surface"], str, f"{where}.surface"),
            store=typed(given.get("store", cls.store), str, f"{where}.store"),
            models=typed(given.get("models", cls.models), str, f"{where}.models"),
            log=typed(given.get("log", cls.log), str, f"{where}.log"),
            backend=cast(Backend, backend),
            clock=cast(Clock, clock),
            keep_log_days=whole(
                given.get("keep_log_days", cls.keep_log_days), f"{where}.keep_log_days", 0, 36_500
            ),
        )


@dataclass(frozen=True)
class Arm:
    """One side of an experiment: a scorer by name, and its share of viewers."""

    name: str
    # popular, shuffle, noop, current, canary (current without a canary), or an artifact's version.
    scorer: str
    share: float
    # The share of rankings whose order is drawn, for `training experiment offline`.
    explore: float = 0.0

    @property
    def by_model(self) -> bool:
        """Return True if an artifact ranks, rather than a heuristic."""
        return self.scorer not in HEURISTICS

    @classmethod
    def from_mapping(cls, name: object, values: object, where: str) -> Arm:
        """Read strictly."""
        # YAML does not read a bare on, off or 1 as a string.
        name = _name(name, where)
        if name == HOLDOUT:
            raise TabrankError(f"{where}: this name is reserved for the viewers held out; use another name")
        given = table(values, where, ARM_KEYS, ARM_KEYS[:2])
        scorer = typed(given["scorer"], str, f"{where}.scorer")
        if not VERSION.fullmatch(scorer) and scorer not in (CURRENT, CANARY, *HEURISTICS):
            names = (CURRENT, CANARY, *HEURISTICS)
            near = nearest(scorer, names)
            there = f"{' There' if near else '; there'} are {', '.join(names)} and the versions that are published"
            raise TabrankError(f"{where}.scorer: there is no scorer {scorer!r}{near}{there}")
        explore = number(given.get("explore", 0.0), f"{where}.explore", 0, 1)
        if explore and scorer in HEURISTICS:
            raise TabrankError(
                f"{where}.explore: orders are drawn from a model's scores, and {scorer} has none; leave it out"
            )
        return cls(name, scorer, number(given["share"], f"{where}.share", 0, 1), explore)


@dataclass(frozen=True)
class Experiment:
    """Arms, assigned by weighted rendezvous hash of (salt, viewer), and the report's settings."""

    name: str
    salt: str
    arms: tuple[Arm, ...]
    # The share of viewers who take part in no experiment and get the popular order.
    holdout: float = 0.0
    # Nobody takes part before the start, or from the end on.
    start_ms: int | None = None
    end_ms: int | None = None
    # The metric that decides.
    primary: str = "join_rate"
    # Relative change of the primary metric below which a difference does not matter. The original
    # system measured +1.96 % and +1.99 %.
    smallest_effect: float = 0.02

    @property
    def versions(self) -> dict[str, str]:
        """The versions that arms name, by arm."""
        return {arm.name: arm.scorer for arm in self.arms if VERSION.fullmatch(arm.scorer)}

    def runs(self, now_ms: int) -> bool:
        """Return True if viewers take part at this time."""
        return (self.start_ms is None or self.start_ms <= now_ms) and (
            self.end_ms is None or now_ms < self.end_ms
        )

    @classmethod
    def from_mapping(cls, values: object, where: str) -> Experiment:
        """Read strictly; the shares must sum to one."""
        given = table(values, where, EXPERIMENT_KEYS, EXPERIMENT_KEYS[:3])
        named = table(given["arms"], f"{where}.arms")
        arms = [Arm.from_mapping(name, spec, f"{where}.arms.{name}") for name, spec in named.items()]
        if not arms:
            raise TabrankError(f"{where}.arms: the table is empty; add at least one arm, such as popular")
        total = sum(arm.share for arm in arms)
        if abs(total - 1) > 1e-9:
            raise TabrankError(f"{where}.arms: the shares sum to {total:g}; they must sum to 1")
        start_ms, end_ms = (_time(given.get(key), f"{where}.{key}") for key in ("start", "end"))
        if start_ms is not None and end_ms is not None and start_ms >= end_ms:
            raise TabrankError(f"{where}.end: {given['end']} must come after the start, {given['start']}")
        experiment = cls(
            _name(given["name"], f"{where}.name"),
            _name(given["salt"], f"{where}.salt"),
            tuple(arms),
            number(given.get("holdout", cls.holdout), f"{where}.holdout", 0, 0.5),
            start_ms,
            end_ms,
            one_of(given.get("primary", cls.primary), METRICS, f"{where}.primary"),
            number(given.get("smallest_effect", cls.smallest_effect), f"{where}.smallest_effect", 1e-4, 1),
        )
        num_versions = len(set(experiment.versions.values()))
        if num_versions > MAX_VERSIONS:
            raise TabrankError(
                f"{where}.arms: they name {num_versions} artifacts by version; "
                f"a scorer holds {MAX_VERSIONS} beside the promoted one"
            )
        return experiment


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise TabrankError(f"{where}: {value!r} must be a string of one character or more; put it in quotes")
    return value


def _time(value: object, where: str) -> int | None:
    if value is None:
        return None
    if value == "now":
        raise TabrankError(f"{where}: each replica and report would have another now; write the time")
    # YAML reads it as a time, which Ray cannot pass on.
    if not isinstance(value, str):
        raise TabrankError(f'{where}: {value} must be in quotes: "2026-01-31T12:00:00Z"')
    return milliseconds(value, where)


@dataclass(frozen=True)
class ApiKey:
    """A caller's key and its permissions; only the key's hash is kept."""

    name: str
    sha256: str
    requests_per_s: float
    # By X-Arm, for testers.
    may_choose_arm: bool = False

    @classmethod
    def from_mapping(cls, name: object, values: object, where: str) -> ApiKey:
        """Read strictly."""
        given = table(_keys_table(values, where), where, API_KEY_KEYS, API_KEY_KEYS[:2])
        return cls(
            _name(name, where),
            _digest(given["sha256"], f"{where}.sha256"),
            number(given["requests_per_s"], f"{where}.requests_per_s", 0.01, 1_000_000),
            typed(given.get("may_choose_arm", False), bool, f"{where}.may_choose_arm"),
        )


def _keys_table(values: object, where: str) -> dict[str, Any]:
    # The value may be a key itself, so no message repeats it.
    if not isinstance(values, dict):
        raise TabrankError(
            f"{where}: must be a table with the SHA-256 of the key, never the key; "
            "`python -m serve key` creates one and prints the lines"
        )
    return values


def _api_keys(values: object, where: str) -> tuple[ApiKey, ...]:
    keys: dict[str, ApiKey] = {}
    for name, spec in _keys_table(values, where).items():
        key = ApiKey.from_mapping(name, spec, f"{where}.{name}")
        if key.sha256 in keys:
            raise TabrankError(
                f"{where}.{name}.sha256: it is also the key of {keys[key.sha256].name!r}; create another"
            )
        keys[key.sha256] = key
    return tuple(keys.values())


@dataclass(frozen=True)
class Shadow:
    """A version that also scores a share of the current one's batches, after their answers."""

    # canary, or an artifact's version.
    version: str
    share: float

    @classmethod
    def from_mapping(cls, values: object, where: str) -> Shadow:
        """Read strictly."""
        given = table(values, where, SHADOW_KEYS, SHADOW_KEYS)
        version = typed(given["version"], str, f"{where}.version")
        if version != CANARY and not VERSION.fullmatch(version):
            raise TabrankError(
                f"{where}.version: {version!r} is neither {CANARY} nor the version of a published artifact"
            )
        return cls(version, number(given["share"], f"{where}.share", 0, 1))


@dataclass(frozen=True)
class Limits:
    """Limits for a version on trial: `user_config.guard`."""

    enabled: bool = True
    # A promoted version is on trial this long; a canary is on trial while it is one.
    watch_s: float = 600.0
    # PSI between its scores and those of the version it replaces, beyond the noise.
    max_psi: float = 0.25
    # Multiple of the scoring time of the version it replaces, for the same rows.
    max_slowdown: float = 3.0
    # Share of its calls that raise.
    max_failed: float = 0.2

    @classmethod
    def from_mapping(cls, values: object, where: str) -> Limits:
        """Read strictly."""
        given: Mapping[str, Any] = table(values, where, [each.name for each in fields(cls)])
        return cls(
            typed(given.get("enabled", cls.enabled), bool, f"{where}.enabled"),
            number(given.get("watch_s", cls.watch_s), f"{where}.watch_s", 0, 86_400),
            number(given.get("max_psi", cls.max_psi), f"{where}.max_psi", 0.01, 100),
            number(given.get("max_slowdown", cls.max_slowdown), f"{where}.max_slowdown", 1.1, 1_000),
            number(given.get("max_failed", cls.max_failed), f"{where}.max_failed", 0.01, 1),
        )


@dataclass(frozen=True)
class UserConfig:
    """Live settings of `FeatureFetch`; a change restarts no replica."""

    experiment: Experiment = Experiment("launch", "launch", (Arm("model", CURRENT, 1.0),))
    # For requests without a deadline. At its deadline, a request gets the popular order.
    deadline_ms: int = 100
    # Most candidates in a batch.
    batch_candidates: int = 1760
    # Batches in progress at once.
    slots: int = 2
    # Above this age of the features, answers report `stale_features`.
    stale_after_ms: int = 5_000
    # Share of rankings whose feature matrix is logged, for the audit.
    log_features: float = 0.001
    # Answer every ranking with the popular order; arms stay assigned.
    kill_switch: bool = False
    # Load shedding: score less, and finally answer fewer requests, so that the p99 holds.
    ladder: bool = True
    # Keys of the callers. Without keys, requests from this machine need none.
    api_keys: tuple[ApiKey, ...] = ()
    shadow: Shadow | None = None
    # When a canary, or a recently promoted version, is rolled back automatically.
    guard: Limits = Limits()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "user_config") -> UserConfig:
        """Read strictly; raise TabrankError with key, value and remedy."""
        given = table(dict(values), where, [field.name for field in fields(cls)])
        experiment = cls.experiment
        if "experiment" in given:
            experiment = Experiment.from_mapping(given["experiment"], f"{where}.experiment")
        return cls(
            experiment,
            whole(given.get("deadline_ms", cls.deadline_ms), f"{where}.deadline_ms", 1, 60_000),
            whole(
                given.get("batch_candidates", cls.batch_candidates), f"{where}.batch_candidates", 1, 100_000
            ),
            whole(given.get("slots", cls.slots), f"{where}.slots", 1, 64),
            whole(given.get("stale_after_ms", cls.stale_after_ms), f"{where}.stale_after_ms", 500, 3_600_000),
            number(given.get("log_features", cls.log_features), f"{where}.log_features", 0, 1),
            typed(given.get("kill_switch", cls.kill_switch), bool, f"{where}.kill_switch"),
            typed(given.get("ladder", cls.ladder), bool, f"{where}.ladder"),
            _api_keys(given.get("api_keys", {}), f"{where}.api_keys"),
            Shadow.from_mapping(given["shadow"], f"{where}.shadow") if given.get("shadow") else None,
            Limits.from_mapping(given.get("guard", {}), f"{where}.guard"),
        )


def _digest(value: object, where: str) -> str:
    if not (isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)):
        raise TabrankError(
            f"{where}: must be the SHA-256 of the key, 64 hexadecimal digits in quotes; "
            "`python -m serve key` creates a key and prints it"
        )
    if value == NO_KEY:
        raise TabrankError(
            f"{where}: is the SHA-256 of an empty key, which would admit everyone; use a real key"
        )
    return value


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
