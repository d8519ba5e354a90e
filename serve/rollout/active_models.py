"""The artifacts that rank: the promoted one, the canary, and those that arms name by their version."""

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
from serve.rollout.history import Followed, History

log = logging.getLogger("tabrank")
LOAD_S = 20.0  # how long the scorers may take to have a version ready

LoadModel = Callable[[str], Awaitable[None]]  # returns when the scorers are ready for that version


class Models:
    """Artifacts from their folder, each verified here and ready in a scorer before it ranks."""

    def __init__(self, folder: Path, columns: Columns, load_model: LoadModel) -> None:
        self.current: Artifact | None = None
        self.canary: Artifact | None = None
        self.named: frozenset[str] = frozenset()  # by the two pointers, whether they are good or not
        self.broken: dict[str, str] = {}  # named versions that were refused for what they are, and why
        self._folder = folder
        self._columns = columns
        self._load_model = load_model
        self._followed = Followed(folder)
        self._ready: dict[str, Artifact] = {}
        self._refused: set[str] = set()
        self._condemned: set[str] = set()

    def version_for(self, arm: Arm) -> str | None:
        """The version that ranks for an arm; None where it has none, or none that is ready."""
        if arm.scorer == CANARY_SCORER and self.canary is not None:
            return self.canary.version
        if arm.scorer in (CURRENT_SCORER, CANARY_SCORER):
            return self.current.version if self.current else None
        return arm.scorer if arm.scorer in self._ready else None

    def artifact(self, version: str | None) -> Artifact | None:
        """A version that is ready."""
        return self._ready.get(version or "")

    @property
    def history(self) -> History:
        """What was done with the versions in the folder."""
        return self._followed.read()

    def condemn(self, version: str) -> None:
        """Use a version no more where a pointer names it, until no pointer has named it for once."""
        self._condemned.add(version)
        if self.canary is not None and self.canary.version == version:
            self.canary = None
        if self.current is not None and self.current.version == version:
            before = self.history.previous(version, self._ready)
            self.current = self._ready[before] if before is not None else self.current

    def before(self, version: str | None) -> str | None:
        """The good version that was current before this one, of those whose files are still there."""
        return self.history.previous(version, versions(self._folder))

    async def follow(self, experiment: Experiment, others: Iterable[str] = ()) -> None:
        """Have ready what the pointers, the arms and `others` name; the last good one goes on until then.

        Raises:
            TabrankError: one was refused; it is not tried again before something else was named in its place.
            Exception: one could not be made ready now. The others are, in either case.
        """
        failed: list[Exception] = []
        pointers = [self._pointed(name, failed) for name in (CURRENT, CANARY)]
        self.named = frozenset(filter(None, pointers))
        self._condemned &= self.named
        promoted = pointers[0] if self._is_good(pointers[0]) else self.before(pointers[0])
        canary = pointers[1] if self._is_good(pointers[1]) else None
        for version in self.named & self.history.rolled_back.keys():
            reason = self.history.rolled_back[version].reason
            failed.append(TabrankError(f"{version} was rolled back: {reason}; promote it to have it again"))
        wanted = {v for v in (promoted, canary, *experiment.versions.values(), *others) if v is not None}
        self._refused &= wanted | self.named
        self.broken = {v: why for v, why in self.broken.items() if v in self.named}
        for version in sorted(wanted - self._ready.keys() - self._refused):
            try:
                # It stays: what is published never changes.
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
        """Rank with what is named and ready; it may have been condemned while others were loaded."""
        current = self._ready.get(promoted or "") if promoted not in self._condemned else None
        if current is not None and current is not self.current:
            self.current = current
            log.info("ranking with model %s", promoted)
        ready = self._ready.get(canary or "") if canary not in self._condemned else None
        if ready is not self.canary:
            self.canary = ready
            log.info("the canary is %s", canary if ready else "none")

    def _is_good(self, version: str | None) -> bool:
        """Whether what a pointer names may rank, as far as it is known."""
        bad = (self._condemned, self.broken, self.history.rolled_back)
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
