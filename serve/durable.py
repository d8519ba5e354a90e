"""Files that are on disk before they have their name."""

from __future__ import annotations

import os
from pathlib import Path

# Umask of all that writes viewers' data, and of its children: files 0600, folders 0700.
PRIVATE = 0o077


def put(draft: Path, path: Path) -> None:
    """Give a written draft, a file or a folder of synced files, its name: what is deleted afterwards may be."""
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
