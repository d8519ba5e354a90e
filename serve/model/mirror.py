"""Mirror: a local copy of a models folder in a bucket, kept up to date.

A replica looks at pointers and versions five times a second, and must not wait for a bucket.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from functools import cache
from pathlib import Path

from serve.contract.errors import TabrankError
from serve.model.artifact import CANARY, CURRENT, HISTORY, MANIFEST, VERSION, versions
from serve.storage.atomic_files import content_of, draft_of, exclusive, remove_folder, sync, write_whole
from serve.storage.bucket import BucketPath, cache_folder

log = logging.getLogger("tabrank")
# How often to look for changes. A promotion takes effect this much later.
PULL_S = 1.0
# How long to wait for another process of this machine that has the same mirror and copies a
# version.
LOCK_S = 60.0


class Mirror:
    """Local copy of a models folder in a bucket; for a local folder, that folder itself.

    A version is copied once it is complete, and before a pointer in the copy names it. While the
    bucket cannot be read, the copy stays as it is, even for processes that start then.
    """

    def __init__(self, models: Path) -> None:
        self.folder = models
        self._models = models
        # The files of the bucket that the copy has, with their versions.
        self._listed: set[tuple[BucketPath, int]] | None = None
        # Why the copy may be out of date; None if the last pull succeeded.
        self.error: Exception | None = None
        if isinstance(models, BucketPath):
            name = hashlib.sha256(str(models).encode()).hexdigest()[:16]
            self.folder = cache_folder() / "models" / name
            self.folder.mkdir(parents=True, exist_ok=True)
            self._follow()
            threading.Thread(target=self._run, daemon=True).start()

    def pull(self) -> None:
        """Bring the copy up to date; a local folder needs nothing.

        Raises:
            OSError, TabrankError: the bucket cannot be read, or the disk cannot be written to.
        """
        if not isinstance(self._models, BucketPath):
            return
        listed = {(path, path.stat().st_ino) for path in self._models.glob("**/*")}
        if listed == self._listed and self.folder.exists():
            return
        with exclusive(self.folder / ".lock", f"{self.folder}: another process is copying models", LOCK_S):
            # Read the pointers before the list, which then contains the versions that they name.
            pointers = {name: content_of(self._models / name) for name in (HISTORY, CURRENT, CANARY)}
            published = versions(self._models)
            for version in published:
                if not (self.folder / version / MANIFEST).exists():
                    # A process that was killed while it deleted a copy may have left half of it.
                    shutil.rmtree(self.folder / version, ignore_errors=True)
                    with draft_of(self.folder / version) as draft:
                        for file in (self._models / version).iterdir():
                            shutil.copyfile(file, draft / file.name)
                            sync(draft / file.name)
            for name, content in pointers.items():
                if content is None:
                    (self.folder / name).unlink(missing_ok=True)
                elif content != content_of(self.folder / name):
                    write_whole(self.folder / name, content)
            for path in self.folder.iterdir():
                if VERSION.fullmatch(path.name) and path.name not in published:
                    remove_folder(path, MANIFEST)
        self._listed = listed

    def _run(self) -> None:
        while not threading.Event().wait(PULL_S):
            self._follow()

    def _follow(self) -> None:
        try:
            self.pull()
            self.error = None
        except (OSError, TabrankError) as error:
            if self.error is None:
                log.warning("%s cannot be followed, its copy is used as it is: %s", self._models, error)
            self.error = error


@cache
def mirror_of(models: Path) -> Mirror:
    """Return the mirror of a models folder; a process has one for each folder."""
    return Mirror(models)
