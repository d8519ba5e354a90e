"""Atomic writes: files and folders get their name only once they are complete; and file locks."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing

# Umask of processes that write viewers' data, and of their children: files 0600, folders 0700.
PRIVATE = 0o077
# Linux's AT_FDCWD and RENAME_EXCHANGE.
AT_CWD, EXCHANGE = -100, 2
# End of the name under which `swap` keeps a folder for a moment.
ASIDE = ".aside"
# Look this often whether a lock is free.
LOOK_S = 0.01


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically and durably."""
    with file_draft_of(path) as draft:
        draft.write_bytes(content)


@contextmanager
def file_draft_of(path: Path) -> Iterator[Path]:
    """Yield a new file's path; the file is put at `path` when the block ends without an error."""
    draft = path.with_name(f".{path.name}.partial")
    try:
        yield draft
        put(draft, path)
    finally:
        # Even a full disk may have created the file.
        draft.unlink(missing_ok=True)


def put(draft: Path, path: Path) -> None:
    """Fsync a draft (a file, or a folder of synced files), rename it, and fsync the parent folder.

    Afterwards the files that it replaces can be deleted safely.
    """
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def swap(draft: Path, folder: Path) -> None:
    """Exchange a folder of synced files and a draft of it, durably.

    It is atomic, except on file systems such as NFS that cannot exchange: there the folder is
    missing for a moment, and a crash in it leaves the folder under a name that ends in `ASIDE`.
    """
    names = os.fsencode(draft), os.fsencode(folder)
    sync(draft)
    if ctypes.CDLL(None).renameat2(AT_CWD, names[0], AT_CWD, names[1], EXCHANGE):
        aside = folder.rename(folder.with_name(f".{folder.name}{ASIDE}"))
        draft.rename(folder)
        aside.rename(draft)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Fsync a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def draft_of(out: Path, mode: int = 0o777) -> Iterator[Path]:
    """Yield a new folder that is renamed to `out` when the block ends without an error.

    Raises:
        TabrankError: `out` exists or cannot be created.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().replace(".", "-") or "localhost"
    for stale in out.parent.glob(f".*.{glob.escape(host)}.*.partial"):
        pid = stale.name.split(".")[-2]
        # The draft of a killed writer on this machine.
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)
    draft = out.parent / f".{out.name}.{host}.{os.getpid()}.partial"
    # A killed writer may have had our process id: ids repeat when a container restarts.
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode)
    try:
        yield draft
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def exclusive(lock: Path, busy: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file, which is created with its folder; it ends with the process.

    Raises:
        TabrankError: with the message `busy`, if another process holds it for `wait_s`, or if the
            folder cannot be written to.
    """
    until = time.monotonic() + wait_s
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise TabrankError(
            f"{lock.parent}: cannot be written to ({error.strerror}); name another folder"
        ) from None
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TabrankError(busy) from None
                time.sleep(LOOK_S)
            except OSError as error:
                raise TabrankError(f"{lock}: cannot be locked ({error.strerror})") from None
        # A holder that removed the file as it ended has left a lock that the next one does not see.
        if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            raise TabrankError(busy)
        yield
