"""Atomic writes: files and folders get their name only once they are complete; and file locks.

Paths may be in a bucket. There a file is written whole by one request, a folder is whole once a
named file is in it, and the draft of either is in the local cache.
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

# Umask of processes that write viewers' data, and of their children: files 0600, folders 0700.
PRIVATE = 0o077
# Look this often whether a lock is free.
LOOK_S = 0.01
# The lock of one file is held for the time of a read and a write.
LOCK_S = 10.0


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically and durably."""
    with file_draft_of(path) as draft:
        draft.write_bytes(content)


def compare_and_set(path: Path, held: bytes | None, new: bytes) -> bool:
    """Write a file durably if its content still is `held`, None for no file; return whether it was.

    On a disk, the caller holds a lock that all who write the file take.
    """
    if isinstance(path, BucketPath):
        return path.swap(held, new)
    if (path.read_bytes() if path.exists() else None) != held:
        return False
    write_whole(path, new)
    return True


def file_lock(path: Path) -> AbstractContextManager[None]:
    """Hold the lock under which a file is compared and set; in a bucket there is none."""
    if isinstance(path, BucketPath):
        return nullcontext()
    busy = f"{path}: another process holds its lock; try again"
    return exclusive(path.with_name(f".{path.name.lower()}.lock"), busy, LOCK_S)


@contextmanager
def file_draft_of(path: Path) -> Iterator[Path]:
    """Yield a new local path; its file is put at `path` when the block ends without an error."""
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
    """Fsync a draft (a file, or a folder of synced files), rename it, and fsync the parent folder.

    Afterwards the files that it replaces can be deleted safely.
    """
    if isinstance(path, BucketPath):
        path.put(draft)
        return
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def put_once(draft: Path, path: Path) -> bool:
    """Put a draft at `path` unless a file is there; return whether none was."""
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
    """Remove a folder that is whole as long as the file `mark` is in it: this one first."""
    (folder / mark).unlink(missing_ok=True)
    if not isinstance(folder, BucketPath):
        shutil.rmtree(folder)
        return
    for path in folder.glob("**/*"):
        path.unlink()


def sync(path: Path) -> None:
    """Fsync a file, or the names in a folder; what is in a bucket is durable."""
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

    In a bucket, its files are written one after another, and the file `mark` as the last: without
    it, the folder is not whole.

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
        # A holder that removed the file as it ended has left a lock that the next one does not see.
        if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            raise TabrankError(busy)
        yield
