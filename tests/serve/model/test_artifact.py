from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.contract.errors import ArtifactRefused, TabrankError
from serve.model.artifact import (
    CURRENT,
    FILES,
    current,
    load,
    new_version,
    point,
    publish,
    save,
    versions,
    with_checksum,
)
from serve.model.encoder import Encoder, NumericColumn

OLD, NEW = "20260102T030405Z-0a1b", "20260102T030406Z-0000"
CONTENT = {name: name.encode() for name in FILES}


def write(folder: Path, version: str = OLD, **files: bytes) -> Path:
    save(folder, {**CONTENT, **files}, {"version": version, "rows": 3})
    return folder


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    encoder = Encoder((NumericColumn("age"),))
    artifact = load(write(tmp_path / "made" / "a", **{"encoder.json": encoder.to_json().encode()}))
    assert artifact.version == OLD
    assert artifact.manifest["rows"] == 3
    assert artifact.manifest["format"] == 4
    assert artifact.read("model.onnx") == b"model.onnx"
    assert artifact.encoder == encoder
    assert names(tmp_path / "made") == ["a"]


def altered(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"model.onnX")


def missing(folder: Path) -> None:
    (folder / "surface.toml").unlink()


def extra(folder: Path) -> None:
    (folder / "weights.pkl").write_bytes(b"")


def extra_folder(folder: Path) -> None:
    (folder / "more").mkdir()


def linked(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "elsewhere")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere")


def linked_manifest(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.parent / "elsewhere")
    (folder / "manifest.json").symlink_to(folder.parent / "elsewhere")


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def broken_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def without_checksum(folder: Path) -> dict[str, Any]:
    """The manifest without its checksum."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return {key: value for key, value in manifest.items() if key != "sha256"}


def manifest_with(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "manifest.json").write_bytes(with_checksum({**without_checksum(folder), **changes}))

    return change


def manifest_text(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    return change


def linked_folder(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def folder_in_place(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()


def pipe_in_place(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")


def too_large(folder: Path) -> None:
    os.truncate(folder / "model.onnx", 1 << 40)


def nested(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b'{"a":' + b"[" * 100_000)


def no_checksum(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps(without_checksum(folder)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (altered, r"model\.onnx is not the file that was written"),
        (missing, r"surface\.toml is missing"),
        (extra, r"weights\.pkl is not named by the manifest"),
        (extra_folder, "more is not named by the manifest"),
        (linked, r"model\.onnx is not a plain file"),
        (linked_manifest, r"manifest\.json is not a plain file"),
        (no_manifest, r"manifest\.json is missing; is this an artifact"),
        (linked_folder, "is a link; name the folder itself"),
        (folder_in_place, r"model\.onnx is not a plain file"),
        (pipe_in_place, r"model\.onnx is not a plain file"),
        (too_large, r"model\.onnx has 1,099,511,627,776 bytes, more than 268,435,456"),
        (broken_manifest, r"manifest\.json: not JSON"),
        (nested, r"manifest\.json: is nested too deeply"),
        (manifest_text(b'"rows": 3', b'"rows": 1e999'), "1e999 is not a JSON number"),
        (manifest_text(b'"rows": 3', b'"rows": NaN'), "NaN is not a JSON number"),
        (manifest_text(b'"rows": 3', b'"rows": 3, "rows": 3'), "the key 'rows' comes twice"),
        (manifest_text(b'"rows": 3', b'"rows": 4'), r"manifest\.json: is not the file that was written"),
        (manifest_text(b"\n", b"\n\n"), r"manifest\.json: is not the file that was written"),
        (no_checksum, r"manifest\.json: is not the file that was written"),
        (manifest_with(format=3), "has format 3, not 4; make it again: python -m training fit"),
        (manifest_with(format=[]), r"has format \[\], not 4"),
        (manifest_with(version="../../etc"), r"version '\.\./\.\./etc' is not like"),
        (manifest_with(files={"../secret": "0"}), "files must name exactly"),
        (manifest_with(files=[]), "files must name exactly"),
        (manifest_with(files=dict.fromkeys(FILES)), "is not the file that was written"),
        (
            manifest_with(files={**dict.fromkeys(FILES, ""), "weights.pkl": ""}),
            r"differs in \['weights\.pkl'\]",
        ),
        (manifest_with(files={**dict.fromkeys(FILES, ""), "/etc/passwd": ""}), "differs in"),
    ],
)
def test_a_damaged_artifact_is_refused_in_one_sentence(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = write(tmp_path / "a")
    damage(folder)
    with pytest.raises(ArtifactRefused, match=message) as refused:
        load(folder)
    assert str(folder) in str(refused.value)
    with pytest.raises(ArtifactRefused):
        publish(folder, tmp_path / "models")
    assert versions(tmp_path / "models") == []


@pytest.mark.parametrize(
    "num_damages",
    [100, pytest.param(1000, marks=[pytest.mark.integration, pytest.mark.no_ray, pytest.mark.proof])],
)
def test_a_flipped_bit_or_a_cut_in_any_file_refuses_the_artifact(tmp_path: Path, num_damages: int) -> None:
    rng = np.random.default_rng(num_damages)
    folder = write(
        tmp_path / "a", **{"weights.safetensors": rng.bytes(5_000), "model.onnx": rng.bytes(5_000)}
    )
    paths = [path for path in folder.iterdir() if path.stat().st_size]
    assert len(paths) == len(FILES) + 1
    for number in range(num_damages):
        # A third of them are in the manifest, which has only its own checksum.
        path = folder / "manifest.json" if number % 3 == 0 else paths[rng.integers(len(paths))]
        whole = path.read_bytes()
        at = int(rng.integers(len(whole)))
        flipped = bytes([whole[at] ^ 1 << int(rng.integers(8))])
        path.write_bytes(whole[:at] + (flipped + whole[at + 1 :] if number % 2 else b""))
        with pytest.raises(ArtifactRefused, match=path.name):
            load(folder)
        path.write_bytes(whole)
    load(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactRefused, match="is this an artifact"):
        load(tmp_path / "nowhere")


def test_a_file_that_changes_after_loading_is_not_read(tmp_path: Path) -> None:
    artifact = load(write(tmp_path / "a"))
    altered(tmp_path / "a")
    with pytest.raises(ArtifactRefused, match="not the file"):
        artifact.read("model.onnx")


def test_an_encoder_that_cannot_be_read_refuses_the_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactRefused, match=r"encoder\.json: encoder: not JSON"):
        _ = load(write(tmp_path / "a")).encoder


def test_saving_refuses_what_is_there_already_and_leaves_it(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(TabrankError, match="exists already"):
        write(tmp_path / "a", version=NEW)
    assert load(tmp_path / "a").version == OLD
    (tmp_path / "empty").mkdir()
    with pytest.raises(TabrankError, match="exists already"):
        write(tmp_path / "empty")


@pytest.mark.parametrize(
    ("files", "version", "message"),
    [
        ({k: v for k, v in CONTENT.items() if k != "report.html"}, OLD, r"it differs in \['report\.html'\]"),
        ({**CONTENT, "notes.txt": b""}, OLD, r"it differs in \['notes\.txt'\]"),
        (CONTENT, "v1", "version 'v1' is not like"),
    ],
)
def test_an_incomplete_artifact_is_not_saved(
    tmp_path: Path, files: dict[str, bytes], version: str, message: str
) -> None:
    with pytest.raises(TabrankError, match=message):
        save(tmp_path / "a", files, {"version": version})
    assert names(tmp_path) == []


def test_a_failing_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []

    def fail_at_the_third(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail_at_the_third)
    with pytest.raises(TabrankError, match=r"cannot be written.*No space left"):
        write(tmp_path / "a")
    assert len(flushed) == 3
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TabrankError, match="is a file; name another folder"):
        write(tmp_path / "file" / "a")


def test_a_killed_writer_leaves_nothing_after_the_next(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; import serve.model.artifact as a\n"
        "a.sync = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"a.save(Path(sys.argv[1]), {{name: b'' for name in a.FILES}}, {{'version': {OLD!r}}})"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert process.returncode == -9
    (partial,) = names(tmp_path)
    assert partial.startswith(".a.")
    assert partial.endswith(".partial")
    write(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_leftovers_of_a_killed_writer_with_the_same_pid_are_removed(
    tmp_path: Path,
) -> None:
    left = tmp_path / f".a.{socket.gethostname().replace('.', '-')}.{os.getpid()}.partial"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    load(write(tmp_path / "a"))
    assert names(tmp_path) == ["a"]


@pytest.mark.integration
@pytest.mark.no_ray
@pytest.mark.parametrize("kills", [30, pytest.param(200, marks=pytest.mark.proof)])
def test_a_killed_publisher_leaves_the_old_version_or_the_new_one(tmp_path: Path, kills: int) -> None:
    rng = np.random.default_rng(4)
    write(tmp_path / "old", OLD)
    write(tmp_path / "new", NEW, **{"model.onnx": rng.bytes(1_000_000)})
    command = [sys.executable, "tests/support/publish_process.py", str(tmp_path), str(kills)]
    says = subprocess.run(command, check=False, capture_output=True, text=True)
    assert says.returncode == 0, says.stderr
    found = Counter(says.stdout.splitlines())
    assert set(found) == {f"{OLD} {OLD}", f"{OLD} {OLD} {NEW}", f"{NEW} {OLD} {NEW}"}, "each was met"
    assert found.total() == kills


def test_publishing_copies_once_and_promotion_points(tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert versions(models) == []
    assert current(models) is None
    assert publish(write(tmp_path / "b", NEW), models) == NEW
    assert publish(write(tmp_path / "a"), models) == OLD
    assert versions(models) == [OLD, NEW]
    assert current(models) is None
    point(models, CURRENT, OLD)
    assert current(models) == OLD
    point(models, CURRENT, NEW, f"{OLD}\n".encode())
    assert current(models) == NEW
    assert publish(tmp_path / "a", models) == OLD
    assert load(models / OLD).manifest == load(tmp_path / "a").manifest
    assert names(models) == [OLD, NEW, "CURRENT"]


def test_a_published_artifact_is_never_changed(tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish(write(tmp_path / "a"), models)
    shutil.rmtree(tmp_path / "a")
    write(tmp_path / "a", **{"report.html": b"another"})
    with pytest.raises(ArtifactRefused, match="another artifact is published"):
        publish(tmp_path / "a", models)
    assert load(models / OLD).read("report.html") == b"report.html"


def test_promoting_an_unknown_version_names_the_nearest_one(tmp_path: Path) -> None:
    models = tmp_path / "models"
    with pytest.raises(TabrankError, match=r"is not published in .*; publish an artifact first"):
        point(models, CURRENT, OLD)
    publish(write(tmp_path / "a"), models)
    point(models, CURRENT, OLD)
    for version in (NEW, f"../{models.name}/{OLD}"):
        with pytest.raises(TabrankError, match=f"did you mean {OLD}"):
            point(models, CURRENT, version)
    assert current(models) == OLD


def test_a_pointer_that_holds_no_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").write_text("../a\n")
    with pytest.raises(ArtifactRefused, match=r"holds '\.\./a', which is not a version"):
        current(tmp_path)


def test_a_pointer_that_is_a_link_is_refused_until_it_is_promoted_over(tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish(write(tmp_path / "a"), models)
    (tmp_path / "elsewhere").write_text(NEW)
    (models / "CURRENT").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactRefused, match="CURRENT is not a plain file"):
        current(models)
    point(models, CURRENT, OLD, NEW.encode())
    assert current(models) == OLD
    assert (tmp_path / "elsewhere").read_text() == NEW


def test_a_published_version_that_is_a_link_is_refused(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / OLD).symlink_to(write(tmp_path / "a"))
    with pytest.raises(ArtifactRefused, match="is a link"):
        load(models / OLD)


def test_what_is_no_version_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / f".{OLD}.host.1.partial").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / NEW).write_text("")
    assert versions(tmp_path) == []


def test_versions_sort_by_time() -> None:
    made = [new_version(now_s) for now_s in (0.0, 59.0, 1.7e9, 1.7e9 + 1, 4e9)]
    assert made == sorted(made)
    assert new_version(1795532399.0).startswith("20261124T145959Z-")
