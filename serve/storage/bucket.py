"""Paths of files in a bucket, such as `s3://bucket/log/LEASE`, on the library obstore.

A `BucketPath` is a `Path` that is not on the disk. The modules that read and write a log or a
models folder accept both kinds. `serve.storage.atomic_files` has the operations in which they
differ.

Credentials and region come from where the cloud's own tools find them: the environment, the
identity of a container, or the machine. `gs://` and `az://` have the same code, but nobody has
tried them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache, wraps
from itertools import chain, islice
from pathlib import Path, PosixPath
from typing import IO, Any, ParamSpec, TypeVar

from serve.contract.errors import TabrankError

# How many parts of a path name the bucket. Azure's name an account and a container.
ROOTS = {"s3:": 2, "gs:": 2, "az:": 3}
# A request fails if nothing arrives for READ_S. The largest segment may take minutes in all.
READ_S, REQUEST_S = timedelta(seconds=30), timedelta(minutes=10)
# Requests that are refused or cut are repeated for RETRY_S in all, after pauses that grow.
RETRY_S = timedelta(seconds=20)
BACKOFF = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2)}
# How many bytes of a file are held in memory while it is fetched.
CHUNK_BYTES = 8 << 20
# If a draft in the cache was not written to for this long, its process was killed.
DRAFT_S = 86_400.0
# A lock is free if its holder has not renewed it for EXPIRE_S. A holder renews it every RENEW_S.
EXPIRE_S, RENEW_S = 15.0, 3.0
LOOK_S = 0.2
# What obstore's error contains if a reply ends early, and how often such a read is tried. Obstore
# repeats requests, but does not resume replies.
CUT, READS = "response body", 4

P = ParamSpec("P")
T = TypeVar("T")


class BucketError(OSError):
    """A bucket did not do what was asked; `strerror` says why."""

    def __init__(self, path: BucketPath, error: Exception) -> None:
        # The library's text holds the whole answer, and its own types, so take out the message.
        found = re.search(r"<Message>(.*?)</Message>", str(error))
        why = found[1] if found else str(error).splitlines()[0][:300]
        super().__init__(errno.EIO, f"{why} (check bucket, credentials, region and endpoint)", str(path))


class CutReply(BucketError):
    """A reply ended early."""


class BucketPath(PosixPath):
    """Path of a file, or of a folder, in a bucket.

    A folder exists while a file is in it. If a file is passed to `open`, or to a library, its
    present version is fetched into a cache on the local disk. Every access asks the bucket and may
    raise OSError.
    """

    # What a list of the folder said about this file, so that not each of many files is asked for.
    _meta: Any = None

    def __str__(self) -> str:
        scheme, *rest = self.parts
        return f"{scheme}//{'/'.join(rest)}" if scheme in ROOTS else super().__str__()

    def __fspath__(self) -> str:
        """Return the path of a local copy.

        Raises:
            FileNotFoundError: the bucket has no such file.
        """
        return str(_fetched(self))

    @property
    def key(self) -> str:
        """The name in the bucket."""
        return "/".join(self.parts[ROOTS[self.parts[0]] :])

    @property
    def parents(self) -> Sequence[BucketPath]:
        """The folders above, up to the bucket."""
        return [above for above in super().parents if len(above.parts) >= ROOTS[self.parts[0]]]

    @property
    def store(self) -> Any:
        """The bucket, as an object of obstore."""
        return _store(self.parts[: ROOTS[self.parts[0]]])

    def stat(self, **_: Any) -> os.stat_result:
        """Return size and time of a file, and a number that identifies its version as `st_ino`."""
        meta = self._meta or _head(self)
        if meta is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self))
        at = meta["last_modified"].timestamp()
        return os.stat_result((stat.S_IFREG, _number(meta["e_tag"]), 0, 1, 0, 0, meta["size"], at, at, at))

    def exists(self, **_: Any) -> bool:
        """Return True if there is such a file, or a file in such a folder."""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """Return True if there is such a file."""
        return bool(self._meta) or (bool(self.key) and _head(self) is not None)

    def is_dir(self, **_: Any) -> bool:
        """Return True if there is a file in such a folder."""
        return not self._meta and bool(_listed(self, 1))

    def is_symlink(self) -> bool:
        """Return False."""
        return False

    def absolute(self) -> BucketPath:
        """Return the path itself."""
        return self

    def resolve(self, strict: bool = False) -> BucketPath:
        """Return the path itself."""
        return self

    def iterdir(self) -> Generator[BucketPath, None, None]:
        """Yield what is in a folder, in order."""
        yield from sorted({self / path.relative_to(self).parts[0] for path in _listed(self)})

    def glob(self, pattern: str, **_: Any) -> Generator[BucketPath, None, None]:
        """Yield the files of a folder that match a pattern; `**` is allowed only in `**/*`."""
        wanted = Path(pattern).parts
        for path in _listed(self):
            found = path.relative_to(self).parts
            if wanted == ("**", "*") or (len(found) == len(wanted) and all(map(fnmatchcase, found, wanted))):
                yield path

    def read_bytes(self) -> bytes:
        """Return the content of a file."""
        return _got(self)[0]

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        """Return the content of a file as text."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(self, mode: str = "r", *args: Any, **options: Any) -> IO[Any]:  # type: ignore[override]
        """Open a local copy of a file for reading."""
        if mode not in ("r", "rb"):
            raise _refusal(self, f"open({mode!r})")
        return open(os.fspath(self), mode, *args, **options)

    def unlink(self, missing_ok: bool = True) -> None:
        """Delete a file, if there is one."""
        with told(self):
            self.store.delete(self.key)

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing, because a folder exists once it has a file."""

    # Only `serve.storage.atomic_files` calls what follows.

    def put(self, content: bytes | Path, mode: Any = "overwrite") -> None:
        """Write a whole file in one request.

        The reply to a successful write may be lost, and the repeated write be refused. A mark of
        our own on the file tells that the write succeeded.

        Raises:
            FileExistsError: the mode is `create` and the file exists, or the mode is a version and
                the file has another one.
        """
        mark = {"mark": secrets.token_hex(8)}
        try:
            with told(self):
                self.store.put(self.key, content, mode=mode, use_multipart=False, attributes=mark)
        except OSError:
            if mode == "overwrite" or not self._has(mark):
                raise

    def _has(self, mark: dict[str, str]) -> bool:
        """Return True if there is such a file and it has this mark."""
        with suppress(OSError):
            return bool(mark.items() <= _got(self)[2].items())
        return False

    def swap(self, held: bytes | None, new: bytes) -> bool:
        """Write `new` if the file still has the content `held`; return True if it had.

        `held` is None if there was no file.
        """
        found, version = _versioned(self)
        with suppress(FileExistsError, FileNotFoundError):
            if found == held:
                self.put(new, version or "create")
                return True
        return False

    @contextmanager
    def locked(self, busy: str, wait_s: float) -> Iterator[None]:
        """Hold a lock: a file that its holder renews, because the bucket sees no process end.

        Raises:
            TabrankError: with the message `busy`, if another process holds the lock for `wait_s`;
                or another process has taken it meanwhile, because it could not be renewed.
        """
        name, ended = self._taken(busy, wait_s), threading.Event()
        renewing = threading.Thread(target=self._renew, args=(name, ended), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            is_kept = True
            # If the bucket cannot be reached, the lock expires by itself.
            with suppress(BucketError):
                is_kept = self._swap_own(name, b"")
        if not is_kept:
            raise TabrankError(
                f"{self}: another process has taken this lock, because it was not renewed for {EXPIRE_S:g} s; run the "
                "command again"
            )

    def _taken(self, busy: str, wait_s: float) -> bytes:
        """Take the lock once it is free or has expired; return the name of this holder."""
        name, begun = secrets.token_hex(8).encode(), time.monotonic()
        seen, seen_s = b"", begun
        while True:
            now, (found, _) = time.monotonic(), _versioned(self)
            if not found or (found == seen and now - seen_s > EXPIRE_S):
                if self.swap(found, name):
                    return name
            elif found != seen:
                if seen and now - begun > wait_s:
                    raise TabrankError(busy)
                seen, seen_s = found, time.monotonic()
            time.sleep(LOOK_S)

    def _renew(self, name: bytes, ended: threading.Event) -> None:
        """Renew the lock's file until `ended` is set, or another process has taken the lock."""
        while not ended.wait(RENEW_S):
            with suppress(BucketError):
                if not self._swap_own(name, name + secrets.token_hex(4).encode()):
                    return

    def _swap_own(self, name: bytes, new: bytes) -> bool:
        """Write `new` if the lock is held by `name`; return True if it is."""
        held = _versioned(self)[0]
        return held is not None and held.startswith(name) and self.swap(held, new)


def place(named: str | Path, base: Path = Path()) -> Path:
    """Return the path that a text names: in a bucket, or on the disk relative to `base`.

    A text that was turned into a `Path` before has lost one of the two slashes of `s3://`.
    """
    path = Path(named)
    return BucketPath(path) if path.parts[:1] and path.parts[0] in ROOTS else base / path


def is_bucket(named: str) -> bool:
    """Return True if a text names a place in a bucket."""
    return isinstance(place(named), BucketPath)


@contextmanager
def told(path: BucketPath) -> Iterator[None]:
    """Turn obstore's errors within the block into the errors that a disk would raise.

    Raises:
        FileNotFoundError, FileExistsError, BucketError
    """
    try:
        from obstore import exceptions
    except ImportError:
        raise TabrankError(
            f"{path}: buckets need obstore; run `python -m pip install 'tabrank[bucket]'`"
        ) from None
    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError):
        raise _missing(path) from None
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        raise FileExistsError(errno.EEXIST, "is there already", str(path)) from None
    except (exceptions.BaseError, ValueError) as error:
        raise (CutReply if CUT in str(error) else BucketError)(path, error) from error


def repeated(times: int, *errors: type[Exception]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that repeats a read while it fails with one of these errors.

    The error of the last of so many times is raised.
    """

    def decorated(read: Callable[P, T]) -> Callable[P, T]:
        @wraps(read)
        def again(*args: P.args, **options: P.kwargs) -> T:
            for _ in range(times - 1):
                with suppress(*errors):
                    return read(*args, **options)
            return read(*args, **options)

        return again

    return decorated


@cache
def _store(root: Sequence[str]) -> Any:
    from obstore.store import from_url

    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    options: Any = {
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": READ_S,
        "timeout": REQUEST_S,
        "allow_http": endpoint.startswith("http://"),
    }
    retry: Any = {"max_retries": 100, "retry_timeout": RETRY_S, "backoff": BACKOFF}
    return from_url(f"{root[0]}//{'/'.join(root[1:])}", client_options=options, retry_config=retry)


def _head(path: BucketPath) -> Any:
    """Return the bucket's metadata of a file; None if there is no such file."""
    with suppress(FileNotFoundError), told(path):
        return path.store.head(path.key)
    return None


@repeated(READS, CutReply)
def _got(path: BucketPath) -> tuple[bytes, Any, dict[str, str]]:
    """Return the content of a file, the bucket's metadata of it, and its attributes."""
    with told(path):
        got = path.store.get(path.key)
        return bytes(got.bytes()), got.meta, got.attributes


def _versioned(path: BucketPath) -> tuple[bytes | None, dict[str, Any] | None]:
    """Return the content of a file and its version; both are None if there is no such file."""
    with suppress(FileNotFoundError):
        content, meta, _ = _got(path)
        return content, {key: meta[key] for key in ("e_tag", "version") if meta[key]}
    return None, None


@repeated(READS, CutReply)
def _listed(folder: BucketPath, num_chunks: int | None = None) -> list[BucketPath]:
    """Return the files in a folder and its subfolders, in order: all, or some chunks of them."""
    root = BucketPath(*folder.parts[: ROOTS[folder.parts[0]]])
    prefix = f"{folder.key}/" if folder.key else None
    found = []
    with told(folder):
        # A chunk is small, because callers often ask only whether there is any file.
        chunks = folder.store.list(prefix, chunk_size=100)
        for meta in chain.from_iterable(islice(chunks, num_chunks)):
            path = root / meta["path"]
            path._meta = meta
            # Web consoles of clouds mark a new folder by an empty file with the folder's name.
            if path != folder:
                found.append(path)
    return found


@repeated(READS, CutReply)
def _fetched(path: BucketPath) -> Path:
    """Return the path of a copy of the file's present version in the cache."""
    meta = _head(path)
    if meta is None:
        raise _missing(path)
    # Another process may delete the copy meanwhile.
    with suppress(FileNotFoundError):
        os.utime(local := _cached(path, meta))
        return local
    handle, draft = tempfile.mkstemp(dir=cache_folder(), prefix=".")
    try:
        with os.fdopen(handle, "wb") as file, told(path):
            got = path.store.get(path.key)
            for chunk in got.stream(min_chunk_size=CHUNK_BYTES):
                file.write(chunk)
            if file.tell() != got.meta["size"]:
                raise ValueError(f"{CUT}: {file.tell():,} of {got.meta['size']:,} bytes arrived")
        # The file may have changed since it was asked for.
        local = _cached(path, got.meta)
        os.replace(draft, local)
    finally:
        Path(draft).unlink(missing_ok=True)
    _evict(local)
    return local


def _cached(path: BucketPath, meta: Any) -> Path:
    name = hashlib.sha256(f"{path} {meta['e_tag']} {meta['size']}".encode()).hexdigest()[:32]
    return cache_folder() / f"{name}-{path.name}"


def cache_folder() -> Path:
    """Return the local folder for copies of files, which only its owner can read."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "tabrank"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _evict(newest: Path) -> None:
    """Delete the least recently used copies that exceed half of the disk's free space.

    Drafts are deleted once they are so old that only a killed process can have left them.
    """
    found = []
    for path in newest.parent.iterdir():
        with suppress(FileNotFoundError):
            about = path.stat()
            if path.name[0] != "." and path.is_file():
                found.append((about.st_mtime, about.st_size, path))
            elif path.name[0] == "." and time.time() - about.st_mtime > DRAFT_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    used = sum(size for _, size, _ in found)
    most = (used + shutil.disk_usage(newest.parent).free) / 2
    for _, size, path in sorted(found):
        if used <= most:
            return
        if path != newest:
            path.unlink(missing_ok=True)
            used -= size


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such file, or no such bucket", str(path))


def _number(text: str | None) -> int:
    return int.from_bytes(hashlib.sha256(str(text).encode()).digest()[:7])


def _refusal(path: Path, what: str) -> Exception:
    return NotImplementedError(f"{path}: {what} is not possible in a bucket")


def _refused(what: str) -> Any:
    def refuse(path: BucketPath, *_: Any, **__: Any) -> None:
        raise _refusal(path, what)

    return refuse


# If these were inherited, they would act on a local path of nearly the same name. Some exist only
# since Python 3.12.
for _name in (
    *("chmod", "group", "hardlink_to", "is_junction", "is_mount", "lchmod", "link_to", "lstat", "owner"),
    *("readlink", "rename", "replace", "rglob", "rmdir", "samefile", "symlink_to", "touch", "walk"),
    *("write_bytes", "write_text"),
):
    setattr(BucketPath, _name, _refused(_name))
