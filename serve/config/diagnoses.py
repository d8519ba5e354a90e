"""Diagnoses: what is wrong with a service, from its declaration, store, log and models.

Their words, causes and remedies, are in `diagnoses.toml`.
"""

from __future__ import annotations

import math
import os
import shlex
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from serve.config.settings import AppArgs, Arm, UserConfig
from serve.contract.errors import StateMismatch, StoreMissing, StoreUnavailable, TabrankError
from serve.contract.validation import UNITS_MS, duration, spelled
from serve.features.matrix import Features
from serve.model.artifact import CANARY, CURRENT, Artifact, pointed
from serve.model.compatibility import load_for
from serve.storage.bucket import BucketError, is_bucket, place
from serve.stores.factory import name_of, open_store
from serve.stores.protocol import LOAD, Store, shown

# The causes and remedies of all diagnoses, by name.
DIAGNOSES: Mapping[str, Mapping[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
# The page with the anchors of the list.
RUNBOOK = "docs/runbook.md"
# A decayed sum is empty after this many half-lives: less than 1 % is left.
EMPTY_HALF_LIVES = 7
# Two tables whose ids match to a smaller share than this do not belong together, or write ids
# differently.
MIN_COVERAGE = 0.8
# When Ingest starts, it applies the records that the log has and its store lacks. Nobody accepts
# records meanwhile, so this limits them to what takes seconds. If there are more, `serve load` must
# fill the store first, while the old writer still runs.
MAX_CATCH_UP = 200_000
# What to do before a store can be filled, if there is no log.
NO_LOG = (
    ", once there is a log: `{python} -m training import csv --help` says how to make one of your data, and "
    "`{python} -m training simulate --out {log} --end now` makes one for the shipped surface"
)
# Names in the shipped `cluster.yaml`: the surface, which is also the application, and the
# experiment.
SHIPPED_NAMES = ("spaces", "launch")


@dataclass(frozen=True)
class Diagnosis:
    """One thing that is wrong: its name in `diagnoses.toml`, its cause and its remedy."""

    name: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.cause} {self.remedy}"


def diagnosis(name: str, /, **facts: Any) -> Diagnosis:
    """Return a diagnosis of `diagnoses.toml`, with `facts` filled into its sentences.

    A fact whose name ends in `_s` is a duration in seconds.
    """
    facts |= {name: spelled(round(value)) for name, value in facts.items() if name.endswith("_s")}
    return Diagnosis(name, *(DIAGNOSES[name][part].format(**facts) for part in ("cause", "remedy")))


class LogEnd(NamedTuple):
    """End of a log: its last record's number and arrival in ms, and who writes it.

    `other` is the store of its writer if that is another one, and `service` the writer's service.
    Both are empty if they are not known. A store needs the note of at least so many `erasures`, or
    else still knows erased viewers.
    """

    seq: int
    arrival_ms: int
    other: str = ""
    service: str = ""
    erasures: int = 0


class LoadNote(Struct):
    """Note of `serve load` about the rows with which it fills a store."""

    # The log as `DeclaredService.log_paths` returns it, and the number of its last record.
    log: list[str] = []
    log_seq: int = 0
    # When the store was filled, and the time of the newest exposure or event in it.
    filled_ms: int = 0
    ends_ms: int = 0
    # Which share of a table's references name a row of another table, by the keys of
    # `serve.log.join_coverage.JOINS`.
    coverage: dict[str, float] = {}
    erasures: int = 0

    @classmethod
    def of(cls, note: bytes) -> LoadNote:
        """Return the note of a store, b"" without one."""
        return msgspec.json.decode(note or b"{}", type=cls)


@dataclass(frozen=True)
class DeclaredService:
    """An application as its file declares it; paths are relative to `base`.

    `service` identifies the service that runs it, if one does.
    """

    args: AppArgs
    base: Path
    features: Features
    config: UserConfig
    application: str | None = None
    service: str = ""

    def file_faults(self) -> Iterator[Diagnosis]:
        """Diagnose what names, models, an embedded store and the log show without a service."""
        # This imports pyarrow, which most commands do without.
        from serve.log.type_ledger import checked_types

        try:
            models, pointers = place(self.args.models, self.base), {}
            for pointer in (CURRENT, CANARY):
                try:
                    pointers[pointer] = pointed(models, pointer)
                except TabrankError as error:
                    yield self.version_fault(pointer, error)
            # Versions that are not published are refused elsewhere.
            stated = {name for name in self.config.versions.values() if (models / name).is_dir()}
            for name in sorted(filter(None, stated.union(pointers.values()))):
                try:
                    load_for(models / name, self.features)
                except TabrankError as error:
                    yield self.version_fault(name, error)
            arms = self.config.experiment.arms
            yield from self.arms_without_model(
                arm for arm in arms if not pointers.get(CURRENT) and arm.scorer not in stated
            )
            yield from self.foreign_names()
            if self.args.store.startswith("lmdb:"):
                yield from self.store_faults()
            try:
                checked_types(place(self.args.log, self.base), self.features.schema.surface.text)
            except StoreUnavailable as error:
                yield self.error_fault("log_refuses", error)
        except BucketError as error:
            yield self.unreachable(str(error.filename), error)

    def store_faults(self) -> Iterator[Diagnosis]:
        """Diagnose the store as a replica would find it now."""
        log_end = self.log_end()
        try:
            with closing(self.open()) as store:
                seq, note = store.seq(), store.note()
        except StoreUnavailable as error:
            yield self.unavailable_store(error)
        else:
            # Another writer is no fault here: the service takes the log over when it starts.
            yield from self.read_store_faults(seq, note, log_end and log_end._replace(other=""))

    def open(self) -> Store:
        """Open the store for reading."""
        schema = self.features.schema
        name, state = schema.surface.name, schema.fingerprint
        return open_store(self.args.store, name, state, base=self.base, writable=False)

    def log_end(self) -> LogEnd | None:
        """Return the end of the log, and who writes it; None if it is unreadable.

        Raises:
            BucketError: the bucket of the log cannot be read.
        """
        # These import pyarrow, which most commands do without.
        from serve.log.lease import Lease, read_lease
        from serve.log.segments import last_arrival_ms, log_end

        log, schema = place(self.args.log, self.base), self.features.schema
        try:
            held, end = read_lease(log), LogEnd(log_end(log), last_arrival_ms(log))
            if held is None:
                return end
            name = name_of(schema.surface.name, schema.fingerprint)
            is_own = held.names(Lease.of(log, self.args.store, name, "", self.base), log)
            other = "" if is_own or held.released else f"{held.name} at {held.store}"
            erasures = 0 if is_own and held.erased is None else held.erasures
            return end._replace(other=other, service=held.service, erasures=erasures)
        except BucketError:
            raise
        # One of the newest segments may be damaged, or may have been merged away meanwhile.
        except (TabrankError, OSError):
            return None

    def log_paths(self) -> list[str]:
        """Return the log's absolute path and, for an LMDB store, its path relative to the store.

        The relative path stays true if store and log are moved together.
        """
        log, (kind, _, where) = place(self.args.log, self.base).resolve(), self.args.store.partition(":")
        is_beside = kind == "lmdb" and not is_bucket(self.args.log)
        beside = [os.path.relpath(log, (self.base / where).resolve())] if is_beside else []
        return [str(log), *beside]

    def version_fault(self, version: str, error: Exception) -> Diagnosis:
        """Return the diagnosis of a version that cannot rank."""
        name = "model_refused" if isinstance(error, TabrankError) else "model_not_loaded"
        name = "model_of_another_state" if isinstance(error, StateMismatch) else name
        return self.error_fault(name, error, version=version)

    def arms_without_model(self, without: Iterable[Arm]) -> Iterator[Diagnosis]:
        """Diagnose arms without a model if they need one and have viewers."""
        if names := [arm.name for arm in without if arm.by_model and arm.share]:
            yield self.diagnosis("no_model", arms=", ".join(names))

    def arms_without_outcomes(self, named: Iterable[tuple[Arm, Artifact | None]]) -> Iterator[Diagnosis]:
        """Diagnose arms that weigh an outcome which the artifact they name does not predict."""
        for arm, artifact in named:
            if artifact is not None and (why := arm.lacks(artifact)):
                yield self.error_fault("outcomes_missing", TabrankError(why))

    def foreign_names(self) -> Iterator[Diagnosis]:
        """Diagnose names of the shipped `cluster.yaml` that were kept for another surface."""
        surface, experiment = self.features.schema.surface, self.config.experiment
        if surface.name == SHIPPED_NAMES[0]:
            return
        given = {"name": self.application, "experiment.name": experiment.name}
        if names := [f"{key}: {name}" for key, name in given.items() if name in SHIPPED_NAMES]:
            yield self.diagnosis("other_names", surface=surface.name, names=", ".join(names))

    def unreachable(self, place: str, error: Exception) -> Diagnosis:
        """Return the diagnosis of a place in a bucket that cannot be read."""
        why = getattr(error, "strerror", None) or error
        return self.diagnosis("bucket_unreachable", place=place, error=why)

    def unavailable_store(self, error: StoreUnavailable) -> Diagnosis:
        """Return the diagnosis of a store that cannot be read."""
        if not isinstance(error, StoreMissing):
            return self.error_fault("store_unavailable", error)
        schema, others = self.features.schema, ", ".join(error.others)
        name = name_of(schema.surface.name, schema.fingerprint)
        found = self.diagnosis("other_store" if others else "no_store", name=name, others=others)
        if edit := self.args.edit(self.base):
            # A store that is filled from that file is for another surface than the one that runs.
            remedy = (
                f"{found.remedy} But its surface's file {edit}: restore that first, or deploy it afterwards."
            )
            found = replace(found, remedy=remedy)
        return found

    def read_store_faults(self, seq: int, note: bytes, log_end: LogEnd | None) -> Iterator[Diagnosis]:
        """Diagnose a store by the number of its last record, its note, and the end of the log.

        The end of the log must have been read before the store, so that a record that arrives in
        between is not taken for one that the store lacks.

        A log that is ahead of its store holds records that another store took. Ingest applies up to
        `MAX_CATCH_UP` of them when it starts. A feature counts as being as old as the log that
        filled the store until the service has logged records for half a day, or for the feature's
        half-life or `max_stay` if that is shorter.
        """
        log_seq, flushed_ms, other, _, erasures = log_end or (None, 0, "", "", 0)
        filled = LoadNote.of(note)
        live_ms, now_ms, day_ms = flushed_ms - filled.filled_ms, time.time() * 1e3, UNITS_MS["d"]
        emptied, newest_ms = [], now_ms
        for name, kind in self.features.schema.surface.features.items():
            # Most kinds have neither.
            half_life_ms = getattr(kind, "half_life_ms", math.inf)
            max_stay_ms = getattr(kind, "max_stay_ms", math.inf)
            lasting = ("half-life", half_life_ms, EMPTY_HALF_LIVES), ("max_stay", max_stay_ms, 1)
            for what, time_ms, times in lasting:
                since_ms = flushed_ms if live_ms >= min(time_ms, day_ms / 2) else filled.ends_ms
                if now_ms - since_ms > max(time_ms * times, day_ms):
                    emptied.append(f"{name} ({what} {duration(time_ms)})")
                    newest_ms = since_ms
        days = int((now_ms - newest_ms) // day_ms)
        if newest_ms and emptied and self.args.clock == "wall":
            yield self.diagnosis("old_records", days=days, features=", ".join(emptied))
        if filled.log and not set(filled.log).intersection(self.log_paths()):
            source = filled.log[0].removeprefix(f"{self.base.resolve()}{os.sep}")
            yield self.diagnosis("other_log", source=source)
        elif other:
            yield self.diagnosis("log_taken", other=other)
        elif log_seq is not None and log_seq - seq > MAX_CATCH_UP:
            yield self.diagnosis("log_ahead", log_seq=log_seq, seq=seq)
        elif log_seq is not None and log_seq < filled.log_seq:
            yield self.diagnosis("log_behind", log_seq=log_seq, loaded_seq=filled.log_seq)
        if filled.erasures < erasures:
            yield self.diagnosis("viewers_erased")
        coverage = filled.coverage.items()
        if low := [f"{share:.0%} of {name}" for name, share in coverage if share < MIN_COVERAGE]:
            yield self.diagnosis("join_coverage", shares=", ".join(low))

    def error_fault(self, name: str, error: Exception, **facts: object) -> Diagnosis:
        """Return the diagnosis of an error whose text is the cause and, after `; `, the remedy."""
        # The last line of Ray's errors states the cause.
        name_of_it = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        lines = str(error).strip().splitlines() or [name_of_it]
        cause, _, remedy = lines[-1].replace(f"{self.base}{os.sep}", "").partition("; ")
        remedy = remedy or "see docs/runbook.md"
        return self.diagnosis(name, error=cause, remedy=remedy[0].upper() + remedy[1:], **facts)

    def diagnosis(self, name: str, /, **facts: object) -> Diagnosis:
        """Return a diagnosis of `diagnoses.toml`, filled with `facts` and those of this service."""
        args, store = self.args, shown(self.args.store)
        # Paths are relative to the folder of the declaration, wherever a user reads the remedy.
        python = f"cd {shlex.quote(str(self.base.resolve()))} && python"
        given = shlex.join(["--surface", args.surface, "--log", args.log])
        facts |= {"log": args.log, "store": store, "models": shlex.quote(args.models), "python": python}
        facts["given"] = given
        load = LOAD.replace("python", python).replace("--log LOG", f"{given} --store {shlex.quote(store)}")
        if not (is_bucket(args.log) or place(args.log, self.base).exists()):
            load += NO_LOG.format(python=python, log=shlex.quote(args.log))
        found = diagnosis(name, **facts)
        return replace(found, cause=found.cause.replace(LOAD, load), remedy=found.remedy.replace(LOAD, load))
