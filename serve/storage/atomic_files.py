"""Atomic writes and file locks: files and folders get their name only once they are complete.

Paths may be in a bucket. There, one request writes a whole file, a folder is complete once a named
file is in it, and the draft of either is in the local cache.
"""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import psutil

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.storage.bucket import BucketPath, cache_folder

# Umask of processes that write viewers' data, and of their children. It gives files the mode 0600,
# and folders 0700.
PRIVATE = 0o077
# How often to look whether a lock is free.
LOOK_S = 0.01
# How long to wait for the lock of a file, which is held only for a read and a write.
LOCK_S = 10.0


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically and durably."""
    with file_draft_of(path) as draft:
        draft.write_bytes(content)


def content_of(path: Path) -> bytes | None:
    """Return the content of a file, or None if there is no such file."""
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def compare_and_set(path: Path, held: bytes | None, new: bytes) -> bool:
    """Write a file durably if its content still is `held`; return True if it was.

    `held` is None if there was no file. On a disk, the caller must hold a lock that everybody takes
    who writes the file.
    """
    if isinstance(path, BucketPath):
        return path.swap(held, new)
    if content_of(path) != held:
        return False
    write_whole(path, new)
    return True


def file_lock(path: Path) -> AbstractContextManager[None]:
    """Hold the lock under which a file is compared and set. A bucket needs none."""
    if isinstance(path, BucketPath):
        return nullcontext()
    busy = f"{path}: another process holds its lock; try again"
    return exclusive(path.with_name(f".{path.name.lower()}.lock"), busy, LOCK_S)


@contextmanager
def file_draft_of(path: Path) -> Iterator[Path]:
    """Yield a new local path; when the block ends without an error, move its file to `path`."""
    draft = draft_path(path)
    try:
        yield draft
        put(draft, path)
    finally:
        # Even a full disk may have created the file.
        draft.unlink(missing_ok=True)


def draft_path(path: Path) -> Path:
    """Return the local path for a draft of a file."""
    if isinstance(path, BucketPath):
        return cache_folder() / f".{secrets.token_hex(8)}-{path.name}"
    return path.with_name(f".{path.name}.partial")


def put(draft: Path, path: Path) -> None:
    """Fsync a draft, rename it to `path`, and fsync the parent folder.

    The draft is a file, or a folder whose files are synced. Afterwards, files that it replaces can
    be deleted safely.
    """
    if isinstance(path, BucketPath):
        path.put(draft)
        return
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def put_once(draft: Path, path: Path) -> bool:
    """Put a draft at `path` unless a file is there; return True if none was."""
    if not isinstance(path, BucketPath):
        is_new = not path.exists()
        if is_new:
            put(draft, path)
        return is_new
    with suppress(FileExistsError):
        path.put(draft, "create")
        return True
    return False


def remove_folder(folder: Path, mark: str) -> None:
    """Remove a folder, and the file `mark` first, without which the folder counts as incomplete."""
    (folder / mark).unlink(missing_ok=True)
    if not isinstance(folder, BucketPath):
        shutil.rmtree(folder)
        return
    for path in folder.glob("**/*"):
        path.unlink()


def sync(path: Path) -> None:
    """Fsync a file, or the names in a folder. What is in a bucket is durable already."""
    if isinstance(path, BucketPath):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def draft_of(out: Path, mode: int = 0o777, *, mark: str = "") -> Iterator[Path]:
    """Yield a new local folder that becomes `out` when the block ends without an error.

    In a bucket, its files are written one after another, and the file `mark` as the last, without
    which the folder counts as incomplete.

    Raises:
        TabrankError: `out` exists or cannot be created.
    """
    refuse_existing(out / mark if isinstance(out, BucketPath) else out)
    if isinstance(out, BucketPath):
        with tempfile.TemporaryDirectory(prefix=".", dir=cache_folder()) as folder:
            yield (draft := Path(folder))
            for path in sorted(filter(Path.is_file, draft.rglob("*")), key=lambda path: path.name == mark):
                put(path, out / path.relative_to(draft))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().replace(".", "-") or "localhost"
    for stale in out.parent.glob(f".*.{glob.escape(host)}.*.partial"):
        pid = stale.name.split(".")[-2]
        # Remove the draft of a writer on this machine that was killed.
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)
    draft = out.parent / f".{out.name}.{host}.{os.getpid()}.partial"
    # A killed writer may have had our process id, because ids repeat when a container restarts.
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode)
    try:
        yield draft
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def exclusive(lock: Path, busy: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file, which is created with its folder; the lock ends with the process.

    Raises:
        TabrankError: with the message `busy`, if another process holds the lock for `wait_s`; or
            the folder cannot be written to.
    """
    if isinstance(lock, BucketPath):
        with lock.locked(busy, wait_s):
            yield
        return
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
        # If an earlier holder has removed the file, we have locked a file that others do not see.
        if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            raise TabrankError(busy)
        yield
