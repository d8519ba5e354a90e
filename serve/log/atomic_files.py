"""Files and folders that are written before they have their name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from serve.contract.validation import refuse_existing

# Umask of all that writes viewers' data, and of its children: files 0600, folders 0700.
PRIVATE = 0o077


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; it is on disk when this returns."""
    draft = path.with_name(f".{path.name}.partial")
    draft.write_bytes(content)
    put(draft, path)


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


@contextmanager
def draft_of(out: Path, mode: int = 0o777) -> Iterator[Path]:
    """A new folder that gets the name `out` when the block ends: it is there whole or not at all.

    Raises:
        TabrankError: something is at `out`, or nothing can be made there.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for stale in out.parent.glob(f".{out.name}.*.partial"):
        pid = stale.name.split(".")[-2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):  # of a writer that was killed
            shutil.rmtree(stale, ignore_errors=True)
    draft = out.parent / f".{out.name}.{os.getpid()}.partial"
    draft.mkdir(mode)
    try:
        yield draft
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
