"""Artifact: a published model folder, written atomically and verified before use.

`manifest.json` lists every other file with its SHA-256, and ends with its own checksum. An artifact
is plain data: JSON, TOML, safetensors, ONNX and text. Nothing in it is ever unpickled or executed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from serve.contract.errors import ArtifactRefused, TabrankError, nearest
from serve.contract.validation import json_value
from serve.features.slots import FieldRef
from serve.model.encoder import Encoder
from serve.storage.atomic_files import compare_and_set, draft_of, sync
from serve.storage.bucket import BucketError

FORMAT = 4
MANIFEST = "manifest.json"
# The last key of a manifest; its value is the SHA-256 of all bytes before it.
CHECKSUM_KEY = "sha256"
CURRENT = "CURRENT"
CANARY = "CANARY"
HISTORY = "HISTORY"
FILES = (
    "weights.safetensors",
    "encoder.json",
    "model.onnx",
    "model_sorting.onnx",
    "surface.toml",
    "golden.safetensors",
    "evaluation.json",
    "report.html",
    "MODEL_CARD.md",
)
"""The files of an artifact besides its manifest."""
# Larger files are not read. This is enough for a network of 60 million weights.
MAX_FILE_BYTES = 256 << 20
MAX_POINTER_BYTES = 256
# Limits JSON files. Parsed JSON takes some thirty times as much memory.
MAX_JSON_BYTES = 32 << 20

# The name of a version: its time of creation and four random digits.
VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")


@dataclass(frozen=True)
class Artifact:
    """A verified artifact; `read` verifies each file again, in case it has changed since."""

    path: Path
    manifest: Mapping[str, Any]
    # The fields in requests that its training rows had (`serve.model.compatibility`).
    asked: tuple[FieldRef, ...] = ()

    @property
    def version(self) -> str:
        """The version's name, sortable by its time of creation."""
        return str(self.manifest["version"])

    @cached_property
    def outcomes(self) -> dict[str, float]:
        """The predicted outcomes, in the order of a score's columns.

        The value is the amount that a score of 1 stands for: one event, or the outcome's cap.
        """
        return {name: float(about["scale"]) for name, about in self.manifest.get("outcomes", {}).items()}

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of the columns; raises ArtifactRefused if it cannot be read."""
        content = self.read("encoder.json")
        try:
            return Encoder.from_json(content)
        except TabrankError as error:
            raise ArtifactRefused(f"artifact {self.path}: encoder.json: {error}") from error

    def read(self, name: str) -> bytes:
        """Read one file; raise ArtifactRefused if it differs from the manifest."""
        content = _read(self.path, name)
        if hashlib.sha256(content).hexdigest() != self.manifest["files"].get(name):
            raise ArtifactRefused(
                f"artifact {self.path}: {name} is not the file that was written (its sha256 differs from the "
                "manifest's); copy the artifact again, or publish another"
            )
        return content


def new_version(now_s: float) -> str:
    """Return a version name such as 20261124T145959Z-ab12 for `now_s` (seconds since 1970)."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now_s))}-{secrets.token_hex(2)}"


def save(folder: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Write an artifact atomically: to a temporary folder, fsynced, then renamed to `folder`.

    Adds the format and the files' hashes to the manifest. A failed write leaves nothing behind.

    Raises:
        TabrankError: `folder` exists, a file is missing or unknown, the version is not one of
            `new_version`, or the disk refuses.
    """
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    text = with_checksum({**manifest, "format": FORMAT, "files": hashes})
    _checked(folder, text)
    _write_folder(folder, {**files, MANIFEST: text})


def load(folder: Path) -> Artifact:
    """Load the artifact in `folder` and verify all its files.

    Raises:
        ArtifactRefused: `folder` is a link, the manifest is missing, altered or of an unknown
            format, or a file is missing, altered, too large, not in the manifest or not a plain
            file.
    """
    if folder.is_symlink():
        raise ArtifactRefused(f"artifact {folder}: is a link; name the folder itself")
    artifact = opened(folder)
    known = {MANIFEST, *artifact.manifest["files"]}
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            raise ArtifactRefused(f"artifact {folder}: {path.name} is not named by the manifest; remove it")
    for name in artifact.manifest["files"]:
        artifact.read(name)
    return artifact


def opened(folder: Path) -> Artifact:
    """Return the artifact in `folder` after verifying its manifest only; raise ArtifactRefused."""
    return Artifact(folder, _checked(folder, _read(folder, MANIFEST)))


def peek(folder: Path) -> Artifact | None:
    """Return the artifact in `folder` after reading only its manifest; None if that is invalid."""
    with suppress(ArtifactRefused):
        return opened(folder)
    return None


def publish(folder: Path, models: Path) -> str:
    """Verify the artifact in `folder`, copy it to `models`/<version>, and return the version.

    Publishing a published version again does nothing; published artifacts never change.

    Raises:
        ArtifactRefused: the artifact is incomplete, or its version is published with other content.
    """
    artifact = load(folder)
    target = models / artifact.version
    if (target / MANIFEST).exists():
        if load(target).manifest != artifact.manifest:
            raise ArtifactRefused(
                f"artifact {folder}: another artifact is published as {target}; fit again for a new version"
            )
        return artifact.version
    files = {name: artifact.read(name) for name in artifact.manifest["files"]}
    models.mkdir(parents=True, exist_ok=True)
    _write_folder(target, {**files, MANIFEST: _read(folder, MANIFEST)})
    return artifact.version


def versions(models: Path) -> list[str]:
    """Return the published versions, oldest first; a version without its manifest is incomplete."""
    found = (path.parent.name for path in models.glob(f"*/{MANIFEST}"))
    return sorted(name for name in found if VERSION.fullmatch(name))


def require(models: Path, version: str) -> None:
    """Raise TabrankError with the nearest name, unless the version is published."""
    published = versions(models)
    if version not in published:
        near = nearest(version, published, 0.3)
        newest = f"the newest is {published[-1]}" if published else "publish an artifact first"
        hint = f"did you mean {near}?" if near else newest
        raise TabrankError(f"version {version!r} is not published in {models}; {hint}")


def point(models: Path, pointer: str, version: str, held: bytes | None = None) -> None:
    """Make a pointer, CURRENT or CANARY, name a published version; durable on return.

    `held` is what the pointer contained when the change began; None if there was no pointer.

    Raises:
        TabrankError: the version is not published, and the message names the nearest one; or the
            pointer was changed meanwhile, or cannot be written.
    """
    require(models, version)
    try:
        if compare_and_set(models / pointer, held, f"{version}\n".encode()):
            return
    except OSError as error:
        raise TabrankError(f"models {models}: {pointer} cannot be written: {error}") from error
    raise TabrankError(f"models {models}: another process has changed {pointer} meanwhile; retry")


def unpoint(models: Path, pointer: str) -> None:
    """Remove a pointer."""
    try:
        (models / pointer).unlink(missing_ok=True)
        sync(models)
    except OSError as error:
        raise TabrankError(f"models {models}: {pointer} cannot be removed: {error}") from error


def current(models: Path) -> str | None:
    """Return the current version, None before the first promotion; raises what `pointed` raises."""
    return pointed(models, CURRENT)


def pointed(models: Path, pointer: str) -> str | None:
    """Return the version that a pointer names, None without a pointer.

    Raises:
        ArtifactRefused: the pointer does not hold a version.
    """
    try:
        content = _read_plain(models / pointer, MAX_POINTER_BYTES, f"models {models}: {pointer}")
    except FileNotFoundError:
        return None
    text = content.decode("utf-8", "replace").strip()
    if not VERSION.fullmatch(text):
        raise ArtifactRefused(
            f"models {models}: {pointer} holds {text!r}, which is not a version; promote one"
        )
    return text


def _checked(folder: Path, content: bytes) -> dict[str, Any]:
    where = f"artifact {folder}: {MANIFEST}"
    try:
        manifest: dict[str, Any] = json_value(content, where)
    except TabrankError as error:
        raise ArtifactRefused(f"{error}; copy the artifact again, or publish another") from error
    found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
    if found != FORMAT:
        raise ArtifactRefused(
            f"{where}: has format {found!r}, not {FORMAT}; make it again: python -m training fit"
        )
    if not _has_valid_checksum(content):
        raise ArtifactRefused(
            f"{where}: is not the file that was written (its sha256 differs from {CHECKSUM_KEY!r}); copy the artifact "
            "again, or publish another"
        )
    if not VERSION.fullmatch(str(manifest.get("version"))):
        raise ArtifactRefused(f"{where}: version {manifest.get('version')!r} is not like {new_version(0)}")
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != set(FILES):
        named = sorted(set(FILES) ^ set(files)) if isinstance(files, dict) else list(FILES)
        raise ArtifactRefused(f"{where}: files must name exactly {', '.join(FILES)}; it differs in {named}")
    return manifest


def _read(folder: Path, name: str) -> bytes:
    max_bytes = MAX_JSON_BYTES if name.endswith(".json") else MAX_FILE_BYTES
    where = f"artifact {folder}: {name}"
    try:
        return _read_plain(folder / name, max_bytes, where)
    except FileNotFoundError as error:
        raise ArtifactRefused(f"{where} is missing; is this an artifact?") from error


def _read_plain(path: Path, max_bytes: int, where: str) -> bytes:
    """Read a file.

    Raises:
        FileNotFoundError: there is no file.
        ArtifactRefused: with `where`, if it is a link, a folder, a pipe, too large, or unreadable.
        BucketError: the bucket cannot be read now.
    """
    try:
        with open(path, "rb", opener=_open_plain) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.ENXIO, "not a file")
            if status.st_size > max_bytes:
                size = f"{status.st_size:,} bytes, more than {max_bytes:,}"
                raise ArtifactRefused(f"{where} has {size}; is it a model's?")
            return file.read(max_bytes)
    except BucketError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise FileNotFoundError from error
        is_other = error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR)
        why = "is not a plain file; copy it without links" if is_other else f"cannot be read: {error}"
        raise ArtifactRefused(f"{where} {why}") from error


def _open_plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        with draft_of(folder, mark=MANIFEST) as draft:
            for name, content in files.items():
                (draft / name).write_bytes(content)
                sync(draft / name)
            sync(draft)
        sync(folder.parent)
    except OSError as error:
        raise TabrankError(f"artifact {folder}: cannot be written: {error}") from error


def with_checksum(manifest: Mapping[str, Any]) -> bytes:
    """Return the manifest as JSON, with its checksum as the last key."""
    body = json.dumps(manifest, indent=1, allow_nan=False).encode().removesuffix(b"\n}")
    return body + _end(body)


def _has_valid_checksum(content: bytes) -> bool:
    """Return True if `content` is exactly what `with_checksum` would write."""
    body = content[: -len(_end(b""))]
    return content == body + _end(body)


def _end(body: bytes) -> bytes:
    return f',\n "{CHECKSUM_KEY}": "{hashlib.sha256(body).hexdigest()}"\n}}'.encode()
