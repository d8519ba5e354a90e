"""The artifacts that rank: the promoted one, and those that arms name by their version."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from serve.artifact import Artifact, current, load
from serve.errors import TabrankError
from serve.features import Columns
from serve.settings import CURRENT, Arm, Experiment

log = logging.getLogger("tabrank")
LOAD_S = 20.0  # how long a scorer may take to have a version ready

LoadModel = Callable[[str], Awaitable[None]]  # returns when a scorer is ready for that version


class Models:
    """Artifacts from their folder, each verified here and ready in a scorer before it ranks."""

    def __init__(self, folder: Path, columns: Columns, load_model: LoadModel) -> None:
        self.current: Artifact | None = None
        self._folder = folder
        self._columns = columns
        self._load_model = load_model
        self._ready: dict[str, Artifact] = {}
        self._refused: set[str] = set()

    def version_for(self, arm: Arm) -> str | None:
        """The version that ranks for an arm; None where it has none, or none that is ready."""
        if arm.scorer == CURRENT:
            return self.current.version if self.current else None
        return arm.scorer if arm.scorer in self._ready else None

    def artifact(self, version: str | None) -> Artifact | None:
        """A version that is ready."""
        return self._ready.get(version or "")

    async def follow(self, experiment: Experiment) -> None:
        """Have ready what the pointer and the arms name; the last promoted one that was good goes on until then.

        Raises:
            TabrankError: one was refused; it is not tried again before something else was named in its place.
            Exception: one could not be made ready now. The others are, in either case.
        """
        promoted = current(self._folder)
        wanted = {version for version in (promoted, *experiment.versions.values()) if version is not None}
        self._refused &= wanted
        failed: list[Exception] = []
        for version in sorted(wanted - self._ready.keys() - self._refused):
            try:
                self._ready[version] = await self._verified(
                    version
                )  # it stays: what is published never changes
            except Exception as error:
                failed.append(error)
                if isinstance(error, TabrankError):
                    self._refused.add(version)
        if promoted in self._ready and self.current is not self._ready[promoted]:
            self.current = self._ready[promoted]
            log.info("ranking with model %s", promoted)
        if failed:
            raise failed[0]

    async def _verified(self, version: str) -> Artifact:
        artifact = load(self._folder / version)
        artifact.encoder.check(self._columns)
        async with asyncio.timeout(LOAD_S):
            await self._load_model(version)
        return artifact
