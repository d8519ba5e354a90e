"""Paths of files in a bucket, such as `s3://bucket/log/LEASE`, on the library obstore.

A `BucketPath` is a `Path` of which nothing is on the disk: the modules that read and write a log or
a models folder take either. `serve.storage.atomic_files` has the operations in which the two
differ.
Credentials and region come from where the cloud's own tools find them: the environment, the
identity of a container, the machine. `gs://` and `az://` have the same code, and nobody has tried
them.
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
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PosixPath
from typing import IO, Any

from serve.contract.errors import TabrankError

# Parts of a path that name the bucket. Azure's have an account and a container.
ROOTS = {"s3:": 2, "gs:": 2, "az:": 3}
# A request fails if nothing arrives for this long. The largest segment may take minutes in all.
READ_S, REQUEST_S = timedelta(seconds=30), timedelta(minutes=10)
# Refused and cut requests are repeated, for this long in all.
RETRY_S = timedelta(seconds=60)
# Bytes of a file that are held in memory while it is fetched.
CHUNK_BYTES = 8 << 20
# A lock whose holder has not renewed it for this long is free; it is renewed this often.
EXPIRE_S, RENEW_S = 15.0, 3.0
LOOK_S = 0.2


class BucketError(OSError):
    """A bucket did not do what was asked; `strerror` says why."""

    def __init__(self, path: BucketPath, error: Exception) -> None:
        # The library's text holds the whole answer, and its own types.
        found = re.search(r"<Message>(.*?)</Message>", str(error))
        super().__init__(errno.EIO, found[1] if found else str(error).splitlines()[0][:300], str(path))


class BucketPath(PosixPath):
    """Path of a file, or of a folder, in a bucket.

    A folder exists while a file is in it. A file that is passed to `open`, or to a library, is
    fetched into a cache on the local disk, of the version that the bucket then has. Every access
    asks the bucket and may raise OSError.
    """

    # What a list said of this file: of many files, each need not be asked for.
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
    def store(self) -> Any:
        """The bucket, as obstore has it."""
        return _store(self.parts[: ROOTS[self.parts[0]]])

    def stat(self, **_: Any) -> os.stat_result:
        """Return size and time of a file, and a number of its version as `st_ino`."""
        meta = self._meta or _head(self)
        if meta is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self))
        at = meta["last_modified"].timestamp()
        return os.stat_result((stat.S_IFREG, _number(meta["e_tag"]), 0, 1, 0, 0, meta["size"], at, at, at))

    def exists(self, **_: Any) -> bool:
        """Return whether there is such a file, or a file in such a folder."""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """Return whether there is such a file."""
        return bool(self._meta) or (bool(self.key) and _head(self) is not None)

    def is_dir(self, **_: Any) -> bool:
        """Return whether there is a file in such a folder."""
        return not self._meta and next(iter(_listed(self)), None) is not None

    def is_symlink(self) -> bool:
        """Return False."""
        return False

    def resolve(self, strict: bool = False) -> BucketPath:
        """Return the path itself."""
        return self

    def iterdir(self) -> Generator[BucketPath, None, None]:
        """Yield what is in a folder, in order."""
        yield from sorted({self / path.relative_to(self).parts[0] for path in _listed(self)})

    def glob(self, pattern: str, **_: Any) -> Generator[BucketPath, None, None]:
        """Yield the files of a folder that match a pattern; `**` stands in `**/*` alone."""
        wanted = Path(pattern).parts
        for path in _listed(self):
            found = path.relative_to(self).parts
            if wanted == ("**", "*") or (len(found) == len(wanted) and all(map(fnmatchcase, found, wanted))):
                yield path

    def read_bytes(self) -> bytes:
        """Return the content of a file."""
        with told(self):
            return bytes(self.store.get(self.key).bytes())

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
        """Do nothing: a folder exists with its first file."""

    # What only `serve.storage.atomic_files` calls.

    def put(self, content: bytes | Path, mode: Any = "overwrite") -> None:
        """Write a file whole, in one request.

        Raises:
            FileExistsError: with the mode `create`, if the file exists.
        """
        with told(self):
            self.store.put(self.key, content, mode=mode, use_multipart=False)

    def swap(self, held: bytes | None, new: bytes) -> bool:
        """Write `new` if the file still has the content `held`, None for no file; return whether.

        The reply to a write that succeeded may be lost, and the write be repeated and refused: what
        is there then tells by a mark of our own.
        """
        found, version = _versioned(self)
        if found != held:
            return False
        mark = secrets.token_hex(8)
        mode = "create" if version is None else version
        try:
            with told(self):
                self.store.put(self.key, new, mode=mode, use_multipart=False, attributes={"mark": mark})
            return True
        except FileExistsError:
            return self._mark() == mark
        except OSError:
            if self._mark() == mark:
                return True
            raise

    def _mark(self) -> str | None:
        try:
            with told(self):
                return str(self.store.get(self.key).attributes.get("mark"))
        except FileNotFoundError:
            return None

    @contextmanager
    def locked(self, busy: str, wait_s: float) -> Iterator[None]:
        """Hold a lock: a file that its holder renews, because nothing ends it with the process.

        Raises:
            TabrankError: with the message `busy`, if another process holds it for `wait_s`.
        """
        held = self._taken(busy, wait_s)
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(held, ended), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            with suppress(OSError):
                if self.read_bytes().startswith(held):
                    self.unlink()

    def _taken(self, busy: str, wait_s: float) -> bytes:
        name, begun, first = secrets.token_hex(8).encode(), time.monotonic(), None
        while True:
            now, (found, _) = time.monotonic(), _versioned(self)
            if found is None or (found == first and now - begun > EXPIRE_S):
                if self.swap(found, name):
                    return name
            elif first is not None and found != first and now - begun > wait_s:
                raise TabrankError(busy)
            first = first or found
            time.sleep(LOOK_S)

    def _renew(self, name: bytes, ended: threading.Event) -> None:
        """Write the lock's file anew until the end; stop if it is another's."""
        last = name
        while not ended.wait(RENEW_S):
            new = name + secrets.token_hex(4).encode()
            with suppress(OSError):
                if not self.swap(last, new):
                    return
                last = new


def place(named: str | Path, base: Path = Path()) -> Path:
    """Return the path that a text names: in a bucket, or on the disk from the folder `base`.

    A text that was made a `Path` has lost one of the two slashes of `s3://`.
    """
    path = Path(named)
    return BucketPath(path) if path.parts[:1] and path.parts[0] in ROOTS else base / path


def is_bucket(named: str) -> bool:
    """Return whether a text names a place in a bucket."""
    return isinstance(place(named), BucketPath)


@contextmanager
def told(path: BucketPath) -> Iterator[None]:
    """Raise obstore's errors within the block as the errors that a disk raises.

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
        raise BucketError(path, error) from error


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
    retry: Any = {"max_retries": 8, "retry_timeout": RETRY_S}
    return from_url(f"{root[0]}//{'/'.join(root[1:])}", client_options=options, retry_config=retry)


def _head(path: BucketPath) -> Any:
    """Return what the bucket says of a file; None without one."""
    with suppress(FileNotFoundError), told(path):
        return path.store.head(path.key)
    return None


def _versioned(path: BucketPath) -> tuple[bytes | None, dict[str, Any] | None]:
    """Return the content of a file and its version, None without one."""
    with suppress(FileNotFoundError), told(path):
        got = path.store.get(path.key)
        return bytes(got.bytes()), {key: got.meta[key] for key in ("e_tag", "version") if got.meta[key]}
    return None, None


def _listed(folder: BucketPath) -> Iterator[BucketPath]:
    """Yield the files in a folder and in its folders, in the order of their names."""
    root = BucketPath(*folder.parts[: ROOTS[folder.parts[0]]])
    prefix = f"{folder.key}/" if folder.key else None
    with told(folder):
        # The first chunk is small: whether there is any file is often asked.
        for chunk in folder.store.list(prefix, chunk_size=100):
            for meta in chunk:
                path = root / meta["path"]
                path._meta = meta
                yield path


def _fetched(path: BucketPath) -> Path:
    """Return a copy of a file in the cache, of the bucket's present version."""
    meta = _head(path)
    if meta is None:
        raise _missing(path)
    folder = cache_folder()
    name = hashlib.sha256(f"{path} {meta['e_tag']} {meta['size']}".encode()).hexdigest()[:32]
    local = folder / f"{name}-{path.name}"
    if local.exists():
        os.utime(local)
        return local
    handle, draft = tempfile.mkstemp(dir=folder, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file, told(path):
            got = path.store.get(path.key)
            for chunk in got.stream(min_chunk_size=CHUNK_BYTES):
                file.write(chunk)
            if file.tell() != got.meta["size"] or got.meta["e_tag"] != meta["e_tag"]:
                raise ValueError(f"{file.tell():,} of {meta['size']:,} bytes arrived")
        os.replace(draft, local)
    finally:
        Path(draft).unlink(missing_ok=True)
    _evict(folder, local)
    return local


def reader(path: Path) -> Any:
    """Return what pyarrow reads parts of a file from: the path, or a reader of the bucket."""
    if not isinstance(path, BucketPath):
        return path
    import obstore

    with told(path):
        return obstore.open_reader(path.store, path.key)


def cache_folder() -> Path:
    """Return the local folder of what was fetched, which only its owner can read."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "tabrank"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _evict(folder: Path, newest: Path) -> None:
    """Delete the copies that were used longest ago, beyond half of the disk's free space."""
    found = []
    for entry in filter(os.DirEntry.is_file, os.scandir(folder)):
        with suppress(FileNotFoundError):
            found.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
    used = sum(size for _, size, _ in found)
    most = (used + shutil.disk_usage(folder).free) / 2
    for _, size, path in sorted(found):
        if used <= most:
            return
        if path != str(newest):
            Path(path).unlink(missing_ok=True)
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


# Inherited, these would act on a local path of nearly the same name.
for _name in ("chmod", "hardlink_to", "rename", "replace", "rmdir", "symlink_to", "touch", "write_bytes"):
    setattr(BucketPath, _name, _refused(_name))
BucketPath.write_text = _refused("write_text")  # type: ignore[method-assign]
