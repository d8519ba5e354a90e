"""Versions, pointers and history of models in a bucket whose requests fail."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest

import serve.storage.bucket
from serve.contract.errors import ArtifactRefused, TabrankError
from serve.model.artifact import CANARY, CURRENT, MANIFEST, load, publish, versions
from serve.model.mirror import Mirror
from serve.rollout import history
from serve.rollout.registry import ModelRegistry
from serve.storage.bucket import place
from tests.support.s3_server import named
from tests.support.small_surface import TOML
from tests.support.stub_artifact import MODEL, publish_stub

A, B, C = MODEL, "20260102T000000Z-000b", "20260103T000000Z-000c"
# What the library repeats, and what it does not.
REPEATED = ("closed", "503", "slow", "cut upload", "lost reply", "lost 503")


@pytest.fixture
def made(tmp_path):
    """Return the folder of artifacts that were made here."""
    for version in (A, B, C):
        publish_stub(tmp_path / "made", TOML, version)
    return tmp_path / "made"


@pytest.fixture
def models(made, bucket, monkeypatch):
    monkeypatch.setattr(serve.storage.bucket, "RENEW_S", 0.3)
    monkeypatch.setattr(serve.storage.bucket, "EXPIRE_S", 1.5)
    monkeypatch.setattr(serve.storage.bucket, "RETRY_S", timedelta(seconds=0.06))
    serve.storage.bucket._store.cache_clear()
    bucket.slow_s = 0.05
    yield place(named("models"))
    bucket.fault = lambda method, path: None
    serve.storage.bucket._store.cache_clear()


@pytest.fixture
def published(models, made):
    for version in (A, B, C):
        publish(made / version, models)
    return models


def actions(models):
    return [(entry.action, entry.version) for entry in history.read(models).entries]


@pytest.mark.parametrize("what", REPEATED)
def test_each_change_is_made_once_though_each_write_fails_once(published, bucket, what):
    registry = ModelRegistry(published)
    failed = set()

    def fault(method, path):
        if method not in ("PUT", "POST") or path in failed:
            return None
        failed.add(path)
        return what

    changes = (
        lambda: registry.promote(A),
        lambda: registry.promote(B),
        lambda: registry.start_canary(C),
        lambda: registry.end_canary("enough"),
        lambda: registry.start_canary(C),
        lambda: registry.promote(C),
        lambda: registry.roll_back(None, "worse"),
    )
    bucket.fault = fault
    for change in changes:
        failed.clear()
        change()
    bucket.fault = lambda method, path: None
    wanted = [("promote", A), ("promote", B), ("canary", C), ("end", C), ("canary", C), ("promote", C)]
    assert actions(published) == [*wanted, ("rollback", C)]
    assert (registry.current, registry.canary) == (B, None)
    assert bucket.num_failed(what) > 10


def test_of_two_that_promote_at_once_both_are_in_the_history(published):
    def promote(version):
        while True:
            with suppress(TabrankError):
                return ModelRegistry(published).promote(version)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(promote, (A, B, C)))
    found = history.read(published).entries
    assert sorted(entry.version for entry in found) == [A, B, C]
    assert [entry.was for entry in found] == [None, *(entry.now for entry in found[:-1])]
    assert ModelRegistry(published).current == found[-1].version


def test_a_change_that_is_refused_by_the_bucket_says_so_and_succeeds_later(published, bucket):
    registry = ModelRegistry(published)
    registry.promote(A)
    for name in ("HISTORY", CURRENT):
        with (
            bucket.failing("403", "PUT", f"/{name}$"),
            pytest.raises(TabrankError, match=rf"{name} cannot be written.*Access Denied.*check bucket"),
        ):
            registry.promote(B)
        assert registry.current == A
    registry.promote(B)
    assert registry.current == B


PUBLISH = """
import sys
from pathlib import Path
from serve.model.artifact import publish
from serve.storage.bucket import place
publish(Path(sys.argv[1]), place(sys.argv[2]))
"""


@pytest.mark.integration
@pytest.mark.no_ray
@pytest.mark.parametrize("how", ["closed", "cut upload", "lost reply"])
def test_a_publishing_process_that_is_killed_leaves_no_version_and_the_next_one_a_whole(
    models, made, bucket, how
):
    command = [sys.executable, "-c", PUBLISH, str(made / A), str(models)]
    mirror = Mirror(models)
    for left in (1, 9):
        process, num = subprocess.Popen(command), [0]

        def kill(method, path, process=process, num=num, left=left):
            num[0] += method == "PUT"
            if method != "PUT" or num[0] < left:
                return None
            process.kill()
            return how

        bucket.fault = kill
        assert process.wait(60) < 0
        bucket.fault = lambda method, path: None
        assert versions(models) == []
        with pytest.raises(TabrankError, match=r"is not published|does not exist"):
            ModelRegistry(models).promote(A)
        mirror.pull()
        assert versions(mirror.folder) == []
    assert publish(made / A, models) == A
    assert versions(models) == [A]
    assert load(models / A).version == A
    mirror.pull()
    assert load(mirror.folder / A).version == A
    assert publish(made / A, models) == A


@pytest.mark.parametrize("what", [*REPEATED, "cut reply", "403"])
def test_a_mirror_that_is_pulled_from_a_failing_bucket_is_whole_in_the_end(
    published, bucket, what, monkeypatch
):
    monkeypatch.setattr(serve.model.mirror, "PULL_S", 1e9)
    registry = ModelRegistry(published)
    registry.promote(A)
    draw = random.Random(what)
    # What is forbidden is not repeated by the library: a version needs some twenty replies.
    share = 0.05 if what == "403" else 0.2
    bucket.fault = lambda method, path: what if draw.random() < share else None
    mirror = Mirror(published)
    for _ in range(100):
        try:
            mirror.pull()
            break
        except (OSError, TabrankError):
            # Whatever is there is whole.
            for version in versions(mirror.folder):
                load(mirror.folder / version)
    bucket.fault = lambda method, path: None
    assert versions(mirror.folder) == [A, B, C]
    assert (mirror.folder / CURRENT).read_text() == f"{A}\n"
    assert not (mirror.folder / CANARY).exists()
    registry.promote(B)
    mirror.pull()
    assert (mirror.folder / CURRENT).read_text() == f"{B}\n"


def test_a_mirror_copies_a_version_again_whose_copy_is_half_deleted(published, monkeypatch):
    monkeypatch.setattr(serve.model.mirror, "PULL_S", 1e9)
    mirror = Mirror(published)
    (mirror.folder / B / MANIFEST).unlink()
    # A process that starts then finds the rest.
    again = Mirror(published)
    assert again.error is None
    assert load(again.folder / B).version == B


def test_a_damaged_file_of_a_published_version_is_refused(published):
    (published / A / "encoder.json").put(os.urandom(10))
    with pytest.raises(ArtifactRefused, match=r"s3://.*encoder\.json is not the file that was written"):
        load(published / A)
    (published / A / MANIFEST).unlink()
    assert versions(published) == [B, C]
