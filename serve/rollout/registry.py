"""Model registry: promote and roll back published versions, and run canaries; one writer only."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from serve.contract.errors import ArtifactRefused, TabrankError
from serve.contract.validation import refuse_file
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import Surface
from serve.model.artifact import CANARY, CURRENT, load, opened, point, pointed, unpoint, versions
from serve.model.compatibility import check_fit, load_for, require_promotable, surface_of
from serve.rollout.history import Action, CachedHistory, HistoryEntry, append
from serve.storage.atomic_files import content_of, exclusive

LOCK = ".lock"
# How long to wait for the lock. A change takes milliseconds. The limit keeps a writer that was
# stopped from blocking Ingest too.
LOCK_S = 2.0


class NothingBefore(TabrankError):
    """No good version exists to roll back to."""


class ModelRegistry:
    """Version pointers of a models folder. Each change is in the history before a pointer moves.

    `surface` is that of the service which changes them. Commands know no service: they go by the
    surface with which the current version was trained.
    """

    def __init__(self, models: Path, surface: Surface | None = None) -> None:
        self.models = models
        self._surface = surface
        self._history = CachedHistory(models)

    @property
    def current(self) -> str | None:
        """The promoted version; None if the pointer is missing or invalid."""
        return self._pointed(CURRENT)

    @property
    def canary(self) -> str | None:
        """The version that ranks for arms with the scorer `canary`."""
        return self._pointed(CANARY)

    def promote(self, version: str) -> str | None:
        """Make a published version current, and end its canary; return the version before.

        Raises:
            TabrankError: the version is not published, or was trained on a state that this release
                does not keep for its surface, or the folder cannot be written.
        """
        with self._locked() as held:
            require_promotable(self.models, version)
            was = self.current
            if was != version or version in self._history.read().rolled_back:
                self._record("promote", version, version)
                point(self.models, CURRENT, version, held[CURRENT])
            if self.canary == version:
                unpoint(self.models, CANARY)
            return was

    def start_canary(self, version: str) -> None:
        """Make a published version the canary, which ranks for arms with the scorer `canary`.

        Raises:
            TabrankError: the version cannot be promoted, or is current, or no version is current,
                or no service can rank with both.
        """
        with self._locked() as held:
            require_promotable(self.models, version)
            if self.current is None:
                raise TabrankError(
                    f"models {self.models}: a canary needs a current version to fall back to; promote one first"
                )
            if self.current == version:
                raise TabrankError(
                    f"models {self.models}: {version} is the current version; name another as canary"
                )
            if misfit := self.misfit(version):
                raise TabrankError(f"models {self.models}: {misfit}; promote it instead")
            self._record("canary", version, self.current)
            point(self.models, CANARY, version, held[CANARY])

    def misfit(self, version: str) -> str:
        """Return why no service can rank with both a version and the current one, "" if one can.

        A damaged version is not compared.
        """
        current = self.current
        try:
            if current is not None:
                features = Features(Schema(surface_of(opened(self.models / current))))
                check_fit(load(self.models / version), features, may_lack_outcomes=True)
        except ArtifactRefused:
            return ""
        except TabrankError as error:
            return (
                f"{version} does not fit the surface of {current}, which is current: {str(error).partition(';')[0]}; "
                "replicas with that surface refuse it until `python -m serve up` deploys its own"
            )
        return ""

    def end_canary(self, reason: str) -> str:
        """End the canary and return its version; raise TabrankError without a canary."""
        with self._locked():
            version = self.canary
            if version is None:
                raise TabrankError(f"models {self.models}: there is no canary to end")
            self._record("end", version, self.current, reason)
            unpoint(self.models, CANARY)
            return version

    def roll_back(self, version: str | None, reason: str) -> str | None:
        """Roll the current version back to the good one before it, or end a canary.

        `version` is what is to be rolled back; None if the pointer is missing or invalid. Return
        the version that is current afterwards, or None if `version` was neither current nor canary.

        Raises:
            NothingBefore: no version before it is known to be good and to fit the service.
            TabrankError: the folder cannot be written.
        """
        with self._locked() as held:
            was = self.current
            version = version or was
            if version is not None and version == self.canary:
                self._record("rollback", version, was, reason)
                unpoint(self.models, CANARY)
                return was
            if version is None or version != was:
                return None
            before = self._previous(version)
            self._record("rollback", version, before, reason)
            point(self.models, CURRENT, before, held[CURRENT])
            return before

    def table(self) -> list[dict[str, Any]]:
        """Return all published versions, newest first, each with state, reason and metrics."""
        history, published = self._history.read(), versions(self.models)
        current = self.current
        roles = {self.canary: "canary", current: "current"}
        with suppress(NothingBefore):
            roles = {self._previous(current): "previous", **roles} if current else roles
        found = []
        for version in reversed(published):
            manifest: Mapping[str, Any] = {}
            state, reason = roles.get(version, "published"), ""
            if version in history.rolled_back:
                state, reason = "rolled back", history.rolled_back[version].reason
            try:
                manifest = load(self.models / version).manifest
            except ArtifactRefused as error:
                state, reason = "refused", str(error)
            row = {"version": version, "state": state, "reason": reason, "made": _made(version)}
            metrics = dict(manifest.get("metrics") or {})
            yardstick = {key: manifest.get(key) for key in ("measured_on", "paired")}
            found.append({**row, "current": version == current, "metrics": metrics, **yardstick})
        return found

    def _previous(self, version: str) -> str:
        """Return the last good version before this one that the service accepts.

        Raises:
            NothingBefore: there is none, or nobody knows what the service accepts.
        """
        why, earlier = "", dict.fromkeys(self._history.read().earlier(version))
        try:
            features = Features(Schema(self._surface or surface_of(opened(self.models / version))))
        except ArtifactRefused as error:
            cause, last = str(error).partition("; ")[0], next(iter(earlier), "another")
            raise NothingBefore(
                f"{cause}, so nobody knows what the service accepts; promote {last} if it has the service's surface"
            ) from None
        for each in earlier:
            try:
                # This rules out most versions without reading all their files.
                check_fit(opened(self.models / each), features)
                load_for(self.models / each, features)
                return each
            except TabrankError as error:
                why = why or f" ({each}: {str(error).partition(';')[0]})"
        none = f"no good version of its state and outcomes was current before {version}"
        raise NothingBefore(f"models {self.models}: {none}{why}; promote another")

    def _pointed(self, pointer: str) -> str | None:
        with suppress(ArtifactRefused):
            return pointed(self.models, pointer)
        return None

    def _record(self, action: Action, version: str, now: str | None, reason: str = "") -> None:
        """Record a change before a pointer moves; `now` is the version that is then current."""
        at_ms = int(time.time() * 1e3)
        by: Literal["command", "service"] = "service" if self._surface else "command"
        entry = HistoryEntry(at_ms, action, version, self.current, now, by, reason[:500])
        try:
            append(self.models, entry)
        except OSError as error:
            raise TabrankError(f"models {self.models}: HISTORY cannot be written: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[dict[str, bytes | None]]:
        """Hold the writer's lock, and yield what the pointers contain when it is taken.

        The lock works across machines on a shared file system.

        Raises:
            TabrankError: another process holds it.
        """
        refuse_file(self.models)
        if not self.models.is_dir():
            raise TabrankError(f"models {self.models}: the folder does not exist; publish an artifact first")
        busy = (
            f"models {self.models}: another process has been changing it for {LOCK_S:g} s; retry, or end the process "
            f"that holds {LOCK}"
        )
        with exclusive(self.models / LOCK, busy, LOCK_S):
            try:
                held = {pointer: content_of(self.models / pointer) for pointer in (CURRENT, CANARY)}
            except OSError as error:
                raise TabrankError(f"models {self.models}: its pointers cannot be read: {error}") from error
            yield held


def _made(version: str) -> str:
    """Return when a version was made, as ISO 8601, from its name."""
    return f"{version[:4]}-{version[4:6]}-{version[6:11]}:{version[11:13]}:{version[13:16]}"
