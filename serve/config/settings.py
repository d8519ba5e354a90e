"""The settings that tabrank adds to `cluster.yaml`: `args` rebuild the application, `user_config` is live."""

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
VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")  # of an artifact
METRICS = ("active_days", "join_rate", "clicks", "joins", "minutes")  # of an experiment's report
POPULAR, CURRENT, CANARY, SHUFFLE, NOOP = "popular", "current", "canary", "shuffle", "noop"
HEURISTICS = (POPULAR, SHUFFLE, NOOP)
HOLDOUT = "holdout"  # the arm of those who take part in no experiment
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
    keep_log_days: int = 30  # older segments are deleted, and a snapshot stands for them; 0 keeps all

    def load_surface(self, base: Path) -> Surface:
        """The surface, shipped or a TOML beside `cluster.yaml`."""
        return load_surface(str(base / self.surface) if self.surface.endswith(".toml") else self.surface)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "args") -> AppArgs:
        """Read strictly; raises TabrankError naming key, value and remedy."""
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
    scorer: (
        str  # popular, shuffle, noop, current, canary (current while there is none), or an artifact's version
    )
    share: float
    explore: float = 0.0  # the share of its rankings whose order is drawn, for `training experiment offline`

    @property
    def by_model(self) -> bool:
        """Whether an artifact ranks, and not a heuristic."""
        return self.scorer not in HEURISTICS

    @classmethod
    def from_mapping(cls, name: object, values: object, where: str) -> Arm:
        """Read strictly."""
        name = _name(name, where)  # YAML takes a bare on, off or 1 for something else
        if name == HOLDOUT:
            raise TabrankError(f"{where}: this name is that of the viewers held out; take another")
        given = table(values, where, ARM_KEYS, ARM_KEYS[:2])
        scorer = typed(given["scorer"], str, f"{where}.scorer")
        if not VERSION.fullmatch(scorer) and scorer not in (CURRENT, CANARY, *HEURISTICS):
            names = (CURRENT, CANARY, *HEURISTICS)
            near = nearest(scorer, names)
            there = f"{' There' if near else '; there'} are {', '.join(names)} and the versions that are published"
            raise TabrankError(f"{where}.scorer: {scorer!r} is no scorer{near}{there}")
        explore = number(given.get("explore", 0.0), f"{where}.explore", 0, 1)
        if explore and scorer in HEURISTICS:
            raise TabrankError(
                f"{where}.explore: an order is drawn from a model's scores, and {scorer} has none; leave it out"
            )
        return cls(name, scorer, number(given["share"], f"{where}.share", 0, 1), explore)


@dataclass(frozen=True)
class Experiment:
    """Arms by weighted rendezvous hash of (salt, viewer), and what the report is to answer."""

    name: str
    salt: str
    arms: tuple[Arm, ...]
    holdout: float = 0.0  # the share of viewers who take part in no experiment and get the popular order
    start_ms: int | None = None  # before it, and from the end on, nobody takes part
    end_ms: int | None = None
    primary: str = "join_rate"  # the metric that decides
    # of the primary metric, relative: what is smaller does not matter; the original's were +1.96 % and +1.99 %
    smallest_effect: float = 0.02

    @property
    def versions(self) -> dict[str, str]:
        """The artifacts that arms name by their version, by arm."""
        return {arm.name: arm.scorer for arm in self.arms if VERSION.fullmatch(arm.scorer)}

    def runs(self, now_ms: int) -> bool:
        """Whether viewers take part at a time."""
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
            raise TabrankError(f"{where}.arms: there is none; name at least one, such as popular")
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
        raise TabrankError(f"{where}: each replica and each report has another now; write the time")
    if not isinstance(value, str):  # YAML makes a time of it, which Ray cannot pass on
        raise TabrankError(f'{where}: {value} must be in quotes: "2026-01-31T12:00:00Z"')
    return milliseconds(value, where)


@dataclass(frozen=True)
class ApiKey:
    """A caller's key, of which only the hash is kept, and what it may do."""

    name: str
    sha256: str
    requests_per_s: float
    may_choose_arm: bool = False  # by X-Arm: for testers

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
    if not isinstance(values, dict):  # a key itself, perhaps, which no message repeats
        raise TabrankError(
            f"{where}: must be a table with the SHA-256 of the key, never the key; "
            "`python -m serve key` mints one and prints the lines"
        )
    return values


def _api_keys(values: object, where: str) -> tuple[ApiKey, ...]:
    keys: dict[str, ApiKey] = {}
    for name, spec in _keys_table(values, where).items():
        key = ApiKey.from_mapping(name, spec, f"{where}.{name}")
        if key.sha256 in keys:
            raise TabrankError(
                f"{where}.{name}.sha256: it is the key of {keys[key.sha256].name!r} too; mint another"
            )
        keys[key.sha256] = key
    return tuple(keys.values())


@dataclass(frozen=True)
class Shadow:
    """A version that scores a share of the current one's batches too, after their answers; it ranks nothing."""

    version: str  # canary, or an artifact's version
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
    """What a version on trial may do; `user_config.guard`."""

    enabled: bool = True
    watch_s: float = 600.0  # a promoted version is on trial for so long; a canary is for as long as it is one
    max_psi: float = 0.25  # between its scores and those of the version it replaces, beyond the noise
    max_slowdown: float = 3.0  # times the scoring time of the version it replaces, for the same rows
    max_failed: float = 0.2  # the share of its calls that raise

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
    """The live knobs of `FeatureFetch`; a change touches no replica."""

    experiment: Experiment = Experiment("launch", "launch", (Arm("model", CURRENT, 1.0),))
    deadline_ms: int = 100  # of a request that names none; then it gets the popular order
    batch_candidates: int = 1760  # the most that a batch may take
    slots: int = 2  # batches under way at once
    stale_after_ms: int = 5_000  # of the features' age; beyond, answers say `stale_features`
    log_features: float = 0.001  # the share of rankings whose feature matrix is logged, for the audit
    kill_switch: bool = False  # every ranking is answered in popular order at once; arms stay assigned
    ladder: bool = True  # under load less is scored, and in the end less is answered, so that the p99 holds
    api_keys: tuple[ApiKey, ...] = ()  # of the callers; with none, whoever is on this machine may ask
    shadow: Shadow | None = None
    guard: Limits = Limits()  # when a canary, or a version promoted a while ago, is rolled back by itself

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "user_config") -> UserConfig:
        """Read strictly; raises TabrankError naming key, value and remedy."""
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
            "`python -m serve key` mints a key and prints it"
        )
    if value == NO_KEY:
        raise TabrankError(f"{where}: is the SHA-256 of nothing, so that no key would be needed; take a key")
    return value


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
