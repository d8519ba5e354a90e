"""Version pointers and history of a models folder, by the commands and by the service."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from serve.__main__ import app
from serve.config.settings import UserConfig
from serve.contract.errors import ArtifactRefused, TabrankError
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.model.artifact import CURRENT, point
from serve.rollout import history
from serve.rollout.active_models import ActiveModels
from serve.rollout.registry import ModelRegistry, NothingBefore
from tests.support.small_surface import TOML
from tests.support.stub_artifact import MODEL, publish_stub

FIRST = "20251231T000000Z-0009"
A, B, C = MODEL, "20260102T000000Z-000b", "20260103T000000Z-000c"


@pytest.fixture
def models(tmp_path):
    for version in (A, B, C):
        publish_stub(tmp_path / "models", TOML, version)
    return tmp_path / "models"


@pytest.fixture
def releases(models):
    return ModelRegistry(models)


def states(releases):
    return {each["version"]: each["state"] for each in releases.table()}


def command(models, *words, code=0):
    done = CliRunner().invoke(app, ["models", *words, "--models", str(models)])
    assert done.exit_code == code, done.output
    return done.stderr if code else done.stdout


def test_a_rollback_goes_to_the_good_one_before_and_is_remembered(models, releases):
    for version in (A, B, C):
        releases.promote(version)
    assert states(releases) == {A: "published", B: "previous", C: "current"}
    assert releases.roll_back(None, "wrong topic") == B
    assert states(ModelRegistry(models)) == {A: "previous", B: "current", C: "rolled back"}
    assert releases.table()[0]["reason"] == "wrong topic"
    assert releases.roll_back(None, "that one too") == A
    with pytest.raises(NothingBefore, match="no good version of its state and outcomes was current before"):
        releases.roll_back(None, "and that")
    assert releases.current == A
    # Promoting it by name clears the rollback.
    releases.promote(C)
    assert states(releases) == {A: "previous", B: "rolled back", C: "current"}


def test_a_rollback_goes_to_no_version_of_another_state(tmp_path):
    models = tmp_path / "models"
    changed = TOML.replace('half_life = "10s"', 'half_life = "12s"')
    for version, toml in ((FIRST, changed), (A, TOML), (B, TOML), (C, changed)):
        publish_stub(models, toml, version)
    command(models, "promote", FIRST)
    command(models, "promote", B)
    # The service with the state of B would refuse it.
    refusal = command(models, "rollback", code=1)
    assert f"no good version of its state and outcomes was current before {B} ({FIRST}: it was tr" in refusal
    assert "; promote another" in refusal
    assert ModelRegistry(models).current == B
    assert f"{C} does not fit the surface of {B}, which is current" in command(models, "canary", C, code=2)
    command(models, "promote", C)
    assert states(ModelRegistry(models)) == {FIRST: "previous", A: "published", B: "published", C: "current"}
    assert command(models, "rollback").startswith(f"{FIRST} is current again")


def test_a_rollback_goes_to_no_version_that_lacks_an_outcome(tmp_path):
    models, releases = tmp_path / "models", ModelRegistry(tmp_path / "models")
    wider = TOML.replace(
        "popular =",
        'outcomes.click = { event = "click", within = "10s" }\nweights = { join = 1, click = 1 }\npopular =',
        1,
    )
    for version, toml in ((A, wider), (B, TOML), (C, wider)):
        publish_stub(models, toml, version)
        releases.promote(version)
    # A service that weighs clicks would refuse B.
    assert releases.roll_back(None, "slow") == A
    releases.promote(B)
    assert releases.roll_back(None, "slow") == A


def test_a_rollback_goes_to_no_version_of_another_format(models, releases):
    for version in (A, B, C):
        releases.promote(version)
    text = (models / B / "manifest.json").read_text()
    (models / B / "manifest.json").write_text(text.replace('"format": 4', '"format": 3'))
    assert releases.roll_back(None, "slow") == A


def test_a_version_promoted_before_the_history_can_be_rolled_back_to(models, releases):
    point(models, CURRENT, A)
    releases.promote(B)
    assert releases.roll_back(B, "slow") == A


def test_the_service_takes_back_only_what_is_still_in_use(releases):
    releases.promote(A)
    releases.promote(B)
    assert releases.roll_back(C, "late word") is None
    assert releases.roll_back(B, "shifted") == A
    assert releases.roll_back(B, "so says another replica") is None
    assert releases.table()[1]["reason"] == "shifted"


def test_a_canary_comes_and_goes_beside_the_current_version(releases):
    with pytest.raises(TabrankError, match="needs a current version to fall back to"):
        releases.start_canary(B)
    releases.promote(A)
    with pytest.raises(TabrankError, match="is the current version; name another"):
        releases.start_canary(A)
    releases.start_canary(B)
    assert states(releases) == {A: "current", B: "canary", C: "published"}
    assert releases.end_canary("seen enough") == B
    with pytest.raises(TabrankError, match="no canary to end"):
        releases.end_canary("again")
    releases.start_canary(C)
    assert releases.roll_back(C, "not finite") == A
    assert states(releases) == {A: "current", B: "published", C: "rolled back"}
    releases.start_canary(B)
    releases.promote(B)
    assert (releases.canary, releases.current) == (None, B)


def test_a_version_whose_files_were_deleted_is_not_gone_back_to(models, releases):
    for version in (A, B, C):
        releases.promote(version)
    (models / B).rename(models.parent / "gone")
    assert releases.roll_back(None, "slow") == A


def test_a_replica_that_starts_on_a_broken_version_ranks_with_a_good_one(models, releases):
    for version in (A, B, C):
        releases.promote(version)
    (models / B).rename(models.parent / "gone")

    async def load(version):
        if version == C:
            raise ArtifactRefused("golden.safetensors: row 3 scores otherwise")

    async def followed():
        replica = ActiveModels(models, Features(Schema(read_surface(TOML))), load)
        for _ in range(2):
            with contextlib.suppress(ArtifactRefused):
                await replica.follow(UserConfig())
        return replica

    replica = asyncio.run(followed())
    assert replica.current.version == A
    ((version, verdict),) = replica.at_fault
    assert (version, verdict.kind) == (C, "refused")
    assert "row 3" in verdict.reason


def test_a_version_that_failed_as_a_canary_is_not_gone_back_to(releases):
    for version in (A, B, C):
        releases.promote(version)
    releases.start_canary(B)
    releases.roll_back(B, "not finite")
    assert releases.roll_back(None, "slow") == A


def test_an_altered_artifact_is_listed_as_refused(models, releases):
    releases.promote(A)
    (models / B / "model.onnx").write_bytes(b"other")
    found = {each["version"]: each for each in releases.table()}[B]
    assert found["state"] == "refused"
    assert "model.onnx" in found["reason"]
    # Replicas refuse it, and go on with the current one.
    releases.start_canary(B)
    assert releases.canary == B


def test_the_history_is_bounded_and_a_line_that_is_spoilt_is_left_out(models, releases, monkeypatch):
    monkeypatch.setattr(history, "MAX_ENTRIES", 4)
    for _ in range(5):
        releases.promote(A)
        releases.promote(B)
    assert len(history.read(models).entries) == 4
    text = (models / "HISTORY").read_text()
    elsewhere = text.splitlines()[-1].replace(B, "../../elsewhere").encode()
    spoilt = [
        b"{spoilt",
        text.encode(),
        b'{"at_ms": "x"}',
        text.splitlines()[0][:-3].encode() + b"\xff",
        elsewhere,
    ]
    (models / "HISTORY").write_bytes(b"\n".join(spoilt))
    assert len(history.read(models).entries) == 4
    assert releases.roll_back(None, "slow") == A


def test_what_a_killed_writer_leaves_is_old_or_new(models, releases):
    releases.promote(A)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nimport serve.rollout.registry as r\n"
        "r.point = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "r.ModelRegistry(Path(sys.argv[1])).promote(sys.argv[2])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(models), B], check=False)
    assert done.returncode == -signal.SIGKILL
    assert releases.current == A
    assert states(releases) == {A: "current", B: "published", C: "published"}
    with pytest.raises(NothingBefore):
        releases.roll_back(None, "B was never current")
    releases.promote(B)
    assert states(releases)[A] == "previous"
    assert releases.roll_back(None, "slow") == A


def test_the_history_is_followed_as_it_changes(models, releases):
    followed = history.CachedHistory(models)
    assert followed.read().entries == ()
    releases.promote(A)
    assert [entry.version for entry in followed.read().entries] == [A]
    assert followed.read() is followed.read(), "it is read again only where the file is another"


def test_a_history_that_cannot_be_read_is_neither_forgotten_nor_replaced(models, releases, monkeypatch):
    releases.promote(A)
    releases.promote(B)
    releases.roll_back(None, "slow")
    followed = history.CachedHistory(models)
    assert list(followed.read().rolled_back) == [B]
    (models / "HISTORY").rename(models / "kept")
    # Reading it fails, although it exists.
    (models / "HISTORY").mkdir()
    assert list(followed.read().rolled_back) == [B]
    (models / "HISTORY").rmdir()
    (models / "kept").rename(models / "HISTORY")
    with monkeypatch.context() as patch:
        patch.setattr(history, "content_of", _failing)
        with pytest.raises(TabrankError, match="HISTORY cannot be written"):
            releases.promote(C)
    assert [entry.action for entry in history.read(models).entries] == ["promote", "promote", "rollback"]


def _failing(path):
    raise OSError(errno.EIO, "input/output error")


def test_a_version_is_on_trial_after_promotion_and_not_after_a_rollback(models, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 7.0)
    releases = ModelRegistry(models)
    releases.promote(A)
    releases.promote(B)
    assert history.read(models).promoted_ms(B) == 7_000
    releases.roll_back(None, "slow")
    assert history.read(models).promoted_ms(A) is None


def test_the_commands_promote_list_and_roll_back(models):
    assert command(models, "promote", A) == f"{A} is current\n"
    assert command(models, "promote", B) == f"{B} is current; before: {A}\n"
    assert command(models, "canary", C).startswith(f"{C} is the canary")
    listed = json.loads(command(models, "list", "--json"))["versions"]
    assert [(each["version"], each["state"]) for each in listed] == [
        (C, "canary"), (B, "current"), (A, "previous")
    ]  # fmt: skip
    assert listed[0]["made"] == "2026-01-03T00:00:00Z"
    assert command(models, "canary", "--end", "--reason", "done") == f"{C} has ended as the canary\n"
    assert (
        command(models, "rollback", "--reason", "clicks fell") == f"{A} is current again; {B}: clicks fell\n"
    )
    assert "no good version" in command(models, "rollback", code=1)
    assert "did you mean" in command(models, "promote", B[:-1] + "c", code=2)
    assert "name the version, or end it" in command(models, "canary", code=2)
    assert "the folder does not exist" in command(models.parent / "none", "rollback", code=2)


def test_a_folder_that_cannot_be_written_is_a_sentence(models):
    (models / "HISTORY").mkdir()
    with pytest.raises(TabrankError, match="HISTORY cannot be written"):
        ModelRegistry(models).promote(A)
    assert ModelRegistry(models).current is None


def test_a_writer_that_was_stopped_holds_up_nobody_for_long(models, releases, monkeypatch):
    monkeypatch.setattr("serve.rollout.registry.LOCK_S", 0.02)
    with (models / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TabrankError, match="another process has been changing it"):
            releases.promote(A)
    releases.promote(A)
    assert releases.current == A


def test_a_pointer_that_holds_no_version_can_be_promoted_over(models, releases):
    (models / "CURRENT").write_text("what")
    releases.promote(A)
    assert releases.current == A
    point(models, "CANARY", B)
    (models / "CANARY").write_text("what")
    assert releases.canary is None


def test_a_change_of_meaning_goes_out_with_its_surface(tmp_path):
    models, changed = tmp_path / "models", TOML.replace('within = "10s"', 'within = "20s"')
    for version, toml in ((A, TOML), (B, changed), (C, changed)):
        publish_stub(models, toml, version)
    command(models, "promote", A)
    refusal = command(models, "canary", B, code=2)
    assert "it predicts join as join within 20s, and in the surface tiny join is join within 10s" in refusal
    assert "; promote it instead" in refusal
    for version in (B, C):
        done = CliRunner().invoke(app, ["models", "promote", version, "--models", str(models)])
        assert done.stdout.startswith(f"{version} is current")
        told = f"{B} does not fit the surface of {A}, which is current: it predicts join as join within 20s"
        assert done.stderr.startswith(told) if version == B else done.stderr == ""

    # Both start after the promotions: one before `serve up` deploys the surface, and one after it.
    assert (ranking(models, TOML), ranking(models, changed)) == (A, C)
    # The service knows what it accepts, and the command goes by the current version.
    assert ModelRegistry(models, read_surface(TOML)).roll_back(C, "broken") == A
    command(models, "promote", C)
    assert command(models, "rollback").startswith(f"{B} is current again")
    refusal = command(models, "rollback", code=1)
    assert (
        f"({A}: it predicts join as join within 10s, and in the surface tiny join is join within 20s)"
        in refusal
    )


def ranking(models, toml):
    """Return the version with which a replica ranks that starts with a surface."""

    async def load(version):
        """Load a version into the scorer."""

    replica = ActiveModels(models, Features(Schema(read_surface(toml))), load)
    for _ in range(3):
        with contextlib.suppress(TabrankError):
            asyncio.run(replica.follow(UserConfig()))
    return replica.current.version


def test_without_the_surface_of_the_current_version_a_command_picks_none(models, releases):
    for version in (A, B):
        releases.promote(version)
    (models / B / "manifest.json").write_bytes(b"{}")
    refusal = command(models, "rollback", code=1)
    assert f"so nobody knows what the service accepts; promote {A} if it has the service's surface" in refusal
    assert releases.current == B
    assert ModelRegistry(models, read_surface(TOML)).roll_back(B, "refused") == A


def test_a_refused_version_is_tried_again_only_once_it_is_promoted(models, releases):
    for version in (A, B, C):
        releases.promote(version)
    for version in (B, C):
        (models / version / "model.onnx").write_bytes(b"other")

    async def load(version):
        """Load a version into the scorer."""

    async def followed():
        replica = ActiveModels(models, Features(Schema(read_surface(TOML))), load)
        found = []
        for repaired in (False, False, True):
            if repaired:
                (models / B / "model.onnx").write_bytes(b"")
                releases.promote(B)
            refused = False
            try:
                await replica.follow(UserConfig())
            except ArtifactRefused:
                refused = True
            found.append((replica.current and replica.current.version, refused))
        return found

    assert asyncio.run(followed()) == [(None, True), (A, False), (B, False)]
