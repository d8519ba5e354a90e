"""Diagnoses: what is wrong with a service, from its declaration, store, log and models."""

from __future__ import annotations

import json
import math
import os
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from serve.config.settings import AppArgs, Arm, UserConfig
from serve.contract.errors import StateMismatch, StoreMissing, StoreUnavailable, TabrankError
from serve.contract.validation import UNITS_MS, duration
from serve.features.matrix import Features
from serve.model.artifact import current
from serve.model.compatibility import load_for
from serve.stores.candidate_table import CandidateTable
from serve.stores.factory import name_of, open_store, shown

# The causes and remedies of all diagnoses, by name.
LIST: Mapping[str, Mapping[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
# A decayed sum is empty after this many half-lives: less than 1 % is left.
EMPTY_HALF_LIVES = 7
# Below this share the ids of two tables hardly fit each other.
MIN_COVERAGE = 0.5
# Events that a metric of an experiment counts.
COUNTED = {"join_rate": {"join"}, "joins": {"join"}, "minutes": {"join", "leave"}, "clicks": {"click"}}
# Surface, and so application, and experiment of the shipped `cluster.yaml`.
SHIPPED_NAMES = ("spaces", "launch")


@dataclass(frozen=True)
class Diagnosis:
    """One thing that is wrong: its name in the list, and a sentence each of cause and remedy."""

    name: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.cause} {self.remedy}"


def diagnosis(name: str, /, **facts: object) -> Diagnosis:
    """Return a diagnosis of the list, filled with the facts that its sentences name."""
    return Diagnosis(name, *(LIST[name][part].format(**facts) for part in ("cause", "remedy")))


@dataclass(frozen=True)
class Service:
    """An application as its file declares it; paths are relative to `base`."""

    args: AppArgs
    base: Path
    features: Features
    config: UserConfig
    application: str | None = None

    def of_files(self) -> Iterator[Diagnosis]:
        """Diagnose what names, models and an embedded store show without a running service."""
        models, version = self.base / self.args.models, None
        with suppress(TabrankError):
            version = current(models)
        arms = self.config.experiment.arms
        # Versions that are not published are refused elsewhere.
        stated = {arm.scorer for arm in arms if arm.by_model and (models / arm.scorer).is_dir()}
        for name in sorted(filter(None, {*stated, version})):
            try:
                load_for(models / name, self.features)
            except TabrankError as error:
                yield self.of_version(name, error)
        yield from self.of_arms(arm for arm in arms if not version and arm.scorer not in stated)
        yield from self.of_names()
        if self.args.store.startswith("lmdb:"):
            yield from self.of_stored()

    def of_stored(self) -> Iterator[Diagnosis]:
        """Diagnose the store as a replica would read it now."""
        # Before the store: the log is never ahead of a store that is read later.
        log_seq, table = last_number(self.base / self.args.log), self.open()
        with suppress(StoreUnavailable):
            table.read([])
        table.close()
        yield from self.of_store(table, log_seq)

    def open(self) -> CandidateTable:
        """Return a reader of the store, which it opens at the first read."""
        schema = self.features.schema
        name, state = schema.surface.name, schema.fingerprint
        reader = partial(open_store, self.args.store, name, state, base=self.base, writable=False)
        return CandidateTable(schema, reader)

    def of_version(self, version: str, error: Exception) -> Diagnosis:
        """Return the diagnosis of a version that cannot rank."""
        name = "model_refused" if isinstance(error, TabrankError) else "model_not_loaded"
        name = "model_of_another_state" if isinstance(error, StateMismatch) else name
        return self.of_error(name, error, version=version)

    def of_arms(self, without: Iterable[Arm]) -> Iterator[Diagnosis]:
        """Diagnose arms without a model if they need one and have viewers."""
        if names := [arm.name for arm in without if arm.by_model and arm.share]:
            yield diagnosis("no_model", arms=", ".join(names), models=self.args.models)

    def of_names(self) -> Iterator[Diagnosis]:
        """Diagnose names and metrics that belong to another surface."""
        surface, experiment = self.features.schema.surface, self.config.experiment
        lacking = sorted(COUNTED.get(experiment.primary, set()).difference(surface.events))
        names = [f"primary: {experiment.primary} (no event {', '.join(lacking)})"] * bool(lacking)
        if surface.name != SHIPPED_NAMES[0]:
            given = {"name": self.application, "experiment.name": experiment.name}
            names += [f"{key}: {name}" for key, name in given.items() if name in SHIPPED_NAMES]
        if names:
            yield diagnosis("other_names", surface=surface.name, names=", ".join(names))

    def of_store(self, table: CandidateTable, log_seq: int | None) -> Iterator[Diagnosis]:
        """Diagnose a store as its reader found it, beside a log that ended at `log_seq` before.

        None: the end of the log is unknown.
        """
        schema, args, log = self.features.schema, self.args, str((self.base / self.args.log).resolve())
        load = f"python -m serve load --surface {args.surface} --log {args.log} --store {shown(args.store)}"
        facts = {"log": args.log, "log_seq": log_seq, "store": shown(args.store), "load": load}
        # The event loop may replace it meanwhile.
        error = table.error
        if isinstance(error, StoreMissing):
            name, others = name_of(schema.surface.name, schema.fingerprint), ", ".join(error.others)
            yield diagnosis("other_store" if others else "no_store", name=name, others=others, **facts)
            return
        if error is not None:
            yield self.of_error("store_unavailable", error)
            return
        newest_ms = max(int(table.rows.table[name].max(initial=0)) for name in ("sums_ms", "stated_ms"))
        age_ms = time.time() * 1e3 - newest_ms
        days = int(age_ms // UNITS_MS["d"])
        emptied = [
            f"{name} (half-life {duration(half_life_ms)})"
            for name, kind in schema.surface.features.items()
            if (half_life_ms := getattr(kind, "half_life_ms", math.inf)) * EMPTY_HALF_LIVES < age_ms
        ]
        if newest_ms and days and emptied and args.clock == "wall":
            yield diagnosis("old_records", days=days, features=", ".join(emptied))
        note = json.loads(table.note or b"{}")
        if note.get("log", log) != log:
            source = note["log"].removeprefix(f"{self.base.resolve()}{os.sep}")
            yield diagnosis("other_log", source=source, **facts)
        elif log_seq is None:
            pass
        elif log_seq > table.seq:
            yield diagnosis("log_ahead", seq=table.seq, **facts)
        elif log_seq < note.get("log_seq", 0):
            yield diagnosis("log_behind", loaded_seq=note["log_seq"], **facts)
        coverage = note.get("coverage", {}).items()
        if low := [f"{share:.0%} of {name}" for name, share in coverage if share < MIN_COVERAGE]:
            yield diagnosis("join_coverage", shares=", ".join(low), **facts)

    def of_error(self, name: str, error: Exception, **facts: object) -> Diagnosis:
        """Return the diagnosis of an error whose text is the cause and, after `; `, the remedy."""
        # Ray's errors end with the line of their cause.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        cause, _, remedy = lines[-1].replace(f"{self.base}{os.sep}", "").partition("; ")
        remedy = remedy or "see docs/runbook.md"
        return diagnosis(name, error=cause, remedy=remedy[0].upper() + remedy[1:], **facts)


def last_number(log: Path) -> int | None:
    """Return the number of the last record in a log; 0 if it has none, None if it is unreadable."""
    # These import pyarrow, which the path of a request does without.
    from serve.log.reader import TABLES
    from serve.log.segments import last_seq, segments
    from serve.log.snapshots import numbers

    # A damaged segment has no last number.
    with suppress(TabrankError, OSError, StopIteration, AttributeError):
        newest = [path for table in TABLES for path in segments(log, table)[-1:]]
        return max([0, *map(last_seq, newest), *numbers(log)])
    return None
