"""The settings that tabrank adds to `cluster.yaml`: `args` rebuild the application, `user_config` is live."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from serve.errors import TabrankError
from serve.strict import number, one_of, table, typed, whole
from serve.surface import Surface, load_surface

Backend = Literal["onnx", "torch"]
Clock = Literal["wall", "event"]
ARGS = ("surface", "store", "models", "log", "keep_log_days", "backend", "clock")
VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")  # of an artifact
POPULAR, CURRENT, SHUFFLE, NOOP = "popular", "current", "shuffle", "noop"


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
    scorer: str  # popular, shuffle, noop, current, or an artifact's version
    share: float


@dataclass(frozen=True)
class Experiment:
    """Arms by weighted rendezvous hash of (salt, viewer)."""

    name: str
    salt: str
    arms: tuple[Arm, ...]

    @classmethod
    def from_mapping(cls, values: object, where: str) -> Experiment:
        """Read strictly; the shares must sum to one."""
        given = table(values, where, ("name", "salt", "arms"), ("name", "salt", "arms"))
        arms = []
        for name, spec in table(given["arms"], f"{where}.arms").items():
            at = f"{where}.arms.{name}"
            arm = table(spec, at, ("scorer", "share"), ("scorer", "share"))
            scorer = typed(arm["scorer"], str, f"{at}.scorer")
            if not VERSION.fullmatch(scorer):
                scorer = one_of(scorer, (POPULAR, CURRENT, SHUFFLE, NOOP), f"{at}.scorer")
            arms.append(Arm(name, scorer, number(arm["share"], f"{at}.share", 0, 1)))
        total = sum(arm.share for arm in arms)
        if abs(total - 1) > 1e-9:
            raise TabrankError(f"{where}.arms: the shares sum to {total:g}; they must sum to 1")
        return cls(typed(given["name"], str, f"{where}.name"), str(given["salt"]), tuple(arms))


@dataclass(frozen=True)
class UserConfig:
    """The live knobs of `FeatureFetch`; a change touches no replica."""

    experiment: Experiment = Experiment("launch", "launch", (Arm("model", CURRENT, 1.0),))
    deadline_ms: int = 100  # of a request that names none; then it gets the popular order
    batch_candidates: int = 1760  # the most that a batch may take
    slots: int = 2  # batches under way at once
    stale_after_ms: int = 5_000  # of the features' age; beyond, answers say `stale_features`
    log_features: float = 0.001  # the share of rankings whose feature matrix is logged, for the audit

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
        )
