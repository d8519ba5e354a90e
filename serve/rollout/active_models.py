"""Active models of a replica: the promoted version, the canary, and the versions that arms name."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Set
from pathlib import Path

from serve.config.settings import CANARY as CANARY_SCORER
from serve.config.settings import CURRENT as CURRENT_SCORER
from serve.config.settings import Arm, Limits, UserConfig
from serve.contract.errors import TabrankError
from serve.features.matrix import Features
from serve.model.artifact import CANARY, CURRENT, Artifact, pointed, versions
from serve.model.compatibility import load_for
from serve.rollout.guard import Trial, Verdict
from serve.rollout.history import CachedHistory
from serve.rollout.version_state import State, Version

log = logging.getLogger("tabrank")
# The scorers have this time to load a version.
LOAD_S = 20.0

# Returns once the scorers have loaded the version.
LoadModel = Callable[[str], Awaitable[None]]
UNKNOWN = Version("")


class ActiveModels:
    """Artifacts of a models folder, each verified and loaded by a scorer before it ranks."""

    def __init__(self, folder: Path, features: Features, load_model: LoadModel) -> None:
        self.current: Artifact | None = None
        self.canary: Artifact | None = None
        self._versions: dict[str, Version] = {}
        # The version that each pointer names, good or bad.
        self._pointers: dict[str, str | None] = {CURRENT: None, CANARY: None}
        self.limits = Limits()
        self.folder = folder
        self.features = features
        # The errors of versions that are wanted but not loaded, by version.
        self.failures: dict[str, Exception] = {}
        self._load_model = load_model
        self._history = CachedHistory(folder)

    def version_for(self, arm: Arm) -> str | None:
        """Return the loaded version that ranks for an arm; None if there is none.

        A version that was promoted after the settings were made may lack an outcome that the arm
        weighs. It does not rank for this arm, because its order would not follow the weights.
        """
        artifact = self.named_by(arm)
        return None if artifact is None or arm.lacks(artifact) else artifact.version

    def named_by(self, arm: Arm) -> Artifact | None:
        """Return the loaded artifact that an arm names, whether or not it can rank for it."""
        if arm.scorer == CANARY_SCORER and self.canary is not None:
            return self.canary
        return self.current if arm.scorer in (CURRENT_SCORER, CANARY_SCORER) else self.artifact(arm.scorer)

    def artifact(self, name: str | None) -> Artifact | None:
        """Return the artifact of a loaded version, or None."""
        return self._versions.get(name or "", UNKNOWN).artifact

    def trial(self, name: str) -> Trial | None:
        """Return the trial of a version, or None."""
        return self._versions.get(name, UNKNOWN).trial

    @property
    def at_fault(self) -> list[tuple[str, Verdict]]:
        """The versions that a pointer names and that are to be rolled back, with the reason."""
        named = [v for v in self._named if self.limits.enabled or v.state is State.QUARANTINED]
        return [(version.name, version.verdict) for version in named if version.verdict is not None]

    @property
    def lost(self) -> str | None:
        """The version that should be current although no pointer names it, or None."""
        if self._pointers[CURRENT] is not None or CURRENT in self.failures:
            return None
        last = self._history.read().entries[-1:]
        return (last[0].now if last else None) or (self.current.version if self.current else None)

    async def follow(self, config: UserConfig) -> None:
        """Load the versions that the pointers and the settings name; begin and end trials.

        The current versions keep ranking until the new ones are loaded.

        Raises:
            TabrankError: a version was refused. It is tried again only after nothing has named it
                for a while.
            Exception: a version could not be loaded now. The other versions are loaded.
        """
        failed: list[Exception] = []
        self.failures = {name: error for name, error in self.failures.items() if name not in self._pointers}
        before, stated = set(self._pointers.values()), set(config.versions.values())
        self._pointers = {pointer: self._pointed(pointer, failed) for pointer in self._pointers}
        self._release(before, stated)
        self._follow_history(failed)
        # If an earlier version is refused, the one before it is wanted the next time.
        for name in sorted({*filter(None, (*self._usable(), *self._incumbents().values())), *stated}):
            await self._load(self._version(name), failed)
        # Only these must fit. An earlier version, to which a rollback would lead, may be of another
        # state.
        ranking = (*filter(None, self._usable()), *stated, *self._pointers.values())
        lacking = {name for name in ranking if self.artifact(name) is None}
        lacking |= {pointer for pointer, name in self._pointers.items() if name is None}
        self.failures = {name: error for name, error in self.failures.items() if name in lacking}
        self._take_up()
        self._update_trials()
        if failed:
            raise failed[0]

    def quarantine(self, name: str, verdict: Verdict) -> None:
        """Stop using a version for the pointers, until no pointer names it any more."""
        version = self._version(name)
        version.quarantine(verdict)
        if self.canary is version.artifact:
            self.canary = None
        if self.current is version.artifact:
            # Look only among loaded versions: requests wait for this, so it must not read the
            # folder.
            loaded = [each.name for each in self._versions.values() if each.artifact is not None]
            before = self._history.read().previous(name, loaded)
            self.current = self.artifact(before) or self.current

    def _follow_history(self, failed: list[Exception]) -> None:
        """Leave out the versions that were rolled back although a pointer still names them."""
        rolled_back = self._history.read().rolled_back
        for version in self._named:
            if version.name in rolled_back:
                version.roll_back()
                reason = rolled_back[version.name].reason
                failed.append(
                    TabrankError(f"{version.name} was rolled back: {reason}; promote it to use it again")
                )
            elif version.state is State.ROLLED_BACK:
                version.release()

    def _release(self, before: set[str | None], stated: set[str]) -> None:
        """Forget the verdicts about versions that no pointer names any more, or names anew.

        `before` are the versions that the pointers named until now. A refused version is not tried
        again while the settings state it or it was current before.
        """
        named = set(self._pointers.values())
        refused = stated.union(self._history.read().earlier(self._pointers[CURRENT])) - named
        for version in self._versions.values():
            is_refused = version.state is State.REFUSED and version.name in refused
            if version.name not in named & before and not is_refused:
                version.release()

    async def _load(self, version: Version, failed: list[Exception]) -> None:
        if version.artifact is not None or version.state is State.REFUSED:
            return
        try:
            artifact = load_for(self.folder / version.name, self.features)
            async with asyncio.timeout(LOAD_S):
                await self._load_model(version.name)
            version.hold(artifact)
        except Exception as error:
            failed.append(error)
            self.failures[version.name] = error
            if isinstance(error, TabrankError):
                version.refuse(error)

    def _take_up(self) -> None:
        """Rank with the loaded ones of the usable versions."""
        promoted, canary = map(self.artifact, self._usable())
        if promoted is not None and promoted is not self.current:
            self.current = promoted
            log.info("ranking with model %s", promoted.version)
        if canary is not self.canary:
            self.canary = canary
            log.info("the canary is %s", canary.version if canary else "none")

    def _usable(self) -> tuple[str | None, str | None]:
        """Return the promoted version, or the last one before it that is good and was not refused.

        Also return the canary if it is good.
        """
        good = {version.name for version in self._named if not version.is_bad}
        refused = {version.name for version in self._versions.values() if version.state is State.REFUSED}
        promoted, canary = self._pointers.values()
        earlier = promoted if promoted in good else self._before(promoted, refused)
        return earlier, canary if canary in good else None

    def _update_trials(self) -> None:
        incumbents = self._incumbents()
        for version in self._versions.values():
            incumbent = incumbents.get(version.name)
            version.try_against(incumbent if self.artifact(incumbent) else None, self.limits)

    def _incumbents(self) -> dict[str | None, str | None]:
        """Return the versions that belong on trial, with the version to go back to."""
        found: dict[str | None, str | None] = {}
        if not self.limits.enabled:
            return found
        if self.canary is not None and self.current is not None and self.canary is not self.current:
            found[self.canary.version] = self.current.version
        promoted = self._pointers[CURRENT]
        promoted_ms = self._history.read().promoted_ms(promoted)
        if promoted_ms is not None and time.time() * 1e3 - promoted_ms < self.limits.watch_s * 1e3:
            found[promoted] = self._before(promoted)
        return found

    @property
    def _named(self) -> list[Version]:
        return [self._version(name) for name in self._pointers.values() if name is not None]

    def _before(self, name: str | None, refused: Set[str] = frozenset()) -> str | None:
        """Return the last good version before this one whose files still exist."""
        return self._history.read().previous(name, set(versions(self.folder)) - refused)

    def _version(self, name: str) -> Version:
        return self._versions.setdefault(name, Version(name))

    def _pointed(self, pointer: str, failed: list[Exception]) -> str | None:
        try:
            return pointed(self.folder, pointer)
        except TabrankError as error:
            failed.append(error)
            self.failures[pointer] = error
            return None
