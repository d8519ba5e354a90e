"""Active models of a replica: the promoted version, the canary, and the versions that arms name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from serve.config.settings import CANARY as CANARY_SCORER
from serve.config.settings import CURRENT as CURRENT_SCORER
from serve.config.settings import Arm, Experiment
from serve.contract.errors import ArtifactRefused, TabrankError
from serve.features.matrix import Columns
from serve.model.artifact import CANARY, CURRENT, Artifact, load, pointed, versions
from serve.rollout.history import CachedHistory, History

log = logging.getLogger("tabrank")
# Give the scorers at most 20 s to load a version.
LOAD_S = 20.0

# Returns once the scorers have loaded the version.
LoadModel = Callable[[str], Awaitable[None]]


class ActiveModels:
    """Artifacts of a models folder, each verified and loaded by a scorer before it ranks."""

    def __init__(self, folder: Path, columns: Columns, load_model: LoadModel) -> None:
        self.current: Artifact | None = None
        self.canary: Artifact | None = None
        # Versions that the two pointers name, good or bad.
        self.named: frozenset[str] = frozenset()
        # Named versions that were refused because of their content, with the reason.
        self.broken: dict[str, str] = {}
        self._folder = folder
        self._columns = columns
        self._load_model = load_model
        self._followed = CachedHistory(folder)
        self._ready: dict[str, Artifact] = {}
        self._refused: set[str] = set()
        self._quarantined: set[str] = set()

    def version_for(self, arm: Arm) -> str | None:
        """Return the loaded version that ranks for an arm; None if there is none."""
        if arm.scorer == CANARY_SCORER and self.canary is not None:
            return self.canary.version
        if arm.scorer in (CURRENT_SCORER, CANARY_SCORER):
            return self.current.version if self.current else None
        return arm.scorer if arm.scorer in self._ready else None

    def artifact(self, version: str | None) -> Artifact | None:
        """Return the artifact of a loaded version, or None."""
        return self._ready.get(version or "")

    @property
    def history(self) -> History:
        """History of promotions, canaries and rollbacks in the models folder."""
        return self._followed.read()

    def quarantine(self, version: str) -> None:
        """Stop using a version for the pointers, until no pointer names it any more."""
        self._quarantined.add(version)
        if self.canary is not None and self.canary.version == version:
            self.canary = None
        if self.current is not None and self.current.version == version:
            before = self.history.previous(version, self._ready)
            self.current = self._ready[before] if before is not None else self.current

    def before(self, version: str | None) -> str | None:
        """Return the last good version before this one whose files still exist."""
        return self.history.previous(version, versions(self._folder))

    async def follow(self, experiment: Experiment, others: Iterable[str] = ()) -> None:
        """Load the versions that the pointers, the arms and `others` name.

        The current versions keep ranking until the new ones are loaded.

        Raises:
            TabrankError: a version was refused; it is retried only once it was not named for a
                while.
            Exception: a version could not be loaded now; the other versions are loaded.
        """
        failed: list[Exception] = []
        pointers = [self._pointed(name, failed) for name in (CURRENT, CANARY)]
        self.named = frozenset(filter(None, pointers))
        self._quarantined &= self.named
        promoted = pointers[0] if self._is_good(pointers[0]) else self.before(pointers[0])
        canary = pointers[1] if self._is_good(pointers[1]) else None
        for version in self.named & self.history.rolled_back.keys():
            reason = self.history.rolled_back[version].reason
            failed.append(TabrankError(f"{version} was rolled back: {reason}; promote it to use it again"))
        wanted = {v for v in (promoted, canary, *experiment.versions.values(), *others) if v is not None}
        self._refused &= wanted | self.named
        self.broken = {v: why for v, why in self.broken.items() if v in self.named}
        for version in sorted(wanted - self._ready.keys() - self._refused):
            try:
                # Keep it for good: published versions never change.
                self._ready[version] = await self._verified(version)
            except Exception as error:
                failed.append(error)
                if isinstance(error, TabrankError):
                    self._refused.add(version)
                if isinstance(error, ArtifactRefused) and version in self.named:
                    self.broken[version] = str(error)
        self._take_up(promoted, canary)
        if failed:
            raise failed[0]

    def _take_up(self, promoted: str | None, canary: str | None) -> None:
        """Rank with the named versions that are loaded and were not quarantined meanwhile."""
        current = self._ready.get(promoted or "") if promoted not in self._quarantined else None
        if current is not None and current is not self.current:
            self.current = current
            log.info("ranking with model %s", promoted)
        ready = self._ready.get(canary or "") if canary not in self._quarantined else None
        if ready is not self.canary:
            self.canary = ready
            log.info("the canary is %s", canary if ready else "none")

    def _is_good(self, version: str | None) -> bool:
        """Return True if nothing is known against the version that a pointer names."""
        bad = (self._quarantined, self.broken, self.history.rolled_back)
        return version is not None and not any(version in those for those in bad)

    def _pointed(self, pointer: str, failed: list[Exception]) -> str | None:
        try:
            return pointed(self._folder, pointer)
        except TabrankError as error:
            failed.append(error)
            return None

    async def _verified(self, version: str) -> Artifact:
        artifact = load(self._folder / version)
        artifact.encoder.check(self._columns)
        async with asyncio.timeout(LOAD_S):
            await self._load_model(version)
        return artifact
