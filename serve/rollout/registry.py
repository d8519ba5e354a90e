"""Model registry: promote and roll back published versions, and run canaries; one writer only."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from serve.contract.errors import ArtifactRefused, TabrankError
from serve.contract.validation import refuse_file
from serve.model.artifact import CANARY, CURRENT, Artifact, load, peek, point, pointed, unpoint, versions
from serve.model.compatibility import require_promotable
from serve.rollout.history import Action, CachedHistory, HistoryEntry, append
from serve.storage.atomic_files import content_of, exclusive

LOCK = ".lock"
# How long to wait for the lock. A change takes milliseconds. The limit keeps a writer that was
# stopped from blocking Ingest too.
LOCK_S = 2.0


class NothingBefore(TabrankError):
    """No good version exists to roll back to."""


class ModelRegistry:
    """Version pointers of a models folder. Each change is in the history before a pointer moves."""

    def __init__(self, models: Path, by: Literal["command", "service"] = "command") -> None:
        self.models = models
        self._by = by
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
            TabrankError: the version cannot be promoted, or is current, or no version is current.
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
            self._record("canary", version, self.current)
            point(self.models, CANARY, version, held[CANARY])

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
            NothingBefore: no good version of its state and outcomes exists before it.
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
            if before is None:
                none = f"no good version of its state and outcomes was current before {was}"
                raise NothingBefore(f"models {self.models}: {none}; promote another")
            self._record("rollback", version, before, reason)
            point(self.models, CURRENT, before, held[CURRENT])
            return before

    def table(self) -> list[dict[str, Any]]:
        """Return all published versions, newest first, each with state, reason and metrics."""
        history, published = self._history.read(), versions(self.models)
        current = self.current
        roles = {self._previous(current): "previous", self.canary: "canary", current: "current"}
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

    def _previous(self, version: str | None) -> str | None:
        """Return the good version before this one with which the service can rank."""
        found = {each: peek(self.models / each) for each in versions(self.models)}
        was = found.get(version or "")
        alike = [each for each, artifact in found.items() if artifact and _can_replace(artifact, was)]
        return self._history.read().previous(version, alike)

    def _pointed(self, pointer: str) -> str | None:
        with suppress(ArtifactRefused):
            return pointed(self.models, pointer)
        return None

    def _record(self, action: Action, version: str, now: str | None, reason: str = "") -> None:
        """Record a change before a pointer moves; `now` is the version that is then current."""
        at_ms = int(time.time() * 1e3)
        entry = HistoryEntry(at_ms, action, version, self.current, now, self._by, reason[:500])
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


def _can_replace(artifact: Artifact, was: Artifact | None) -> bool:
    """Return True if a service that ranks with `was` would accept an artifact."""
    if was is None:
        return True
    one, other = artifact.manifest, was.manifest
    is_of_state = one.get("state_fingerprint") == other.get("state_fingerprint")
    return is_of_state and other.get("outcomes", {}).keys() <= one.get("outcomes", {}).keys()
