"""Test that each command refuses an unusable path in one sentence, before it does any work."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tests.support.shop_log import write_shop
from training.__main__ import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths")
    write_shop(folder / "log", slates=200)
    (folder / "empty").mkdir()
    (folder / "file").write_text("no folder")
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "search.json").write_text('{"spent_s": 1')
    (folder / "broken").mkdir()
    (folder / "broken" / "manifest.json").write_text("[]")
    (folder / "bad.toml").write_bytes(b"\xff\xfe = [")
    return folder


@pytest.fixture(autouse=True)
def handlers():
    kept = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, kept)


def refused(*arguments: object) -> str:
    """Return the one sentence of a user error, without lines of progress."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert (done.exit_code, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("what", ["missing", "empty", "file", "unfinished", "broken"])
def test_what_is_no_artifact_is_refused_by_name(folder, what):
    for command in (
        ("publish", "--models", folder / "models"),
        ("evaluate", "--log", folder / "log"),
        ("weights", "--log", folder / "log", "--sweep", "hide=-50..0"),
        ("audit", "--surface", "spaces", "--log", folder / "log"),
        ("bench",),
    ):
        assert str(folder / what) in refused(*command, "--model", folder / what)
    assert not (folder / "models").exists()


@pytest.mark.parametrize("what", ["missing", "empty", "file", "unfinished"])
def test_what_is_no_log_is_refused_by_name(folder, what):
    for command in (
        ("surface",),
        ("split", "--out", folder / "parts"),
        ("fit", "--surface", "spaces", "--out", folder / "m"),
        ("search", "--surface", "spaces", "--out", folder / "s"),
        ("audit", "--surface", "spaces"),
    ):
        assert str(folder / what) in refused(*command, "--log", folder / what)


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_where_a_file_is_no_folder_is_written(folder, out):
    log = ("--log", folder / "log")
    for command in (
        ("simulate", "--rows", "1000", "--out"),
        ("surface", *log, "--out"),
        ("split", *log, "--out"),
        ("fit", "--surface", "spaces", *log, "--out"),
        ("search", "--surface", "spaces", *log, "--out"),
        ("search", "--surface", "spaces", *log, "--out", folder / "s", "--models"),
    ):
        assert str(folder / "file") in refused(*command, folder / out)
    assert {path.name for path in folder.iterdir()} == {
        "log",
        "empty",
        "file",
        "unfinished",
        "broken",
        "bad.toml",
    }


@pytest.mark.parametrize("surface", ["bad.toml", "missing.toml", "empty"])
def test_what_is_no_surface_is_refused_by_name(folder, surface):
    for command in ("fit", "search"):
        text = refused(command, "--surface", folder / surface, "--log", folder / "log", "--out", folder / "m")
        assert surface in text


def test_a_search_with_a_torn_record_is_refused_with_the_remedy(folder):
    text = refused("search", "--surface", "spaces", "--log", folder / "log", "--out", folder / "unfinished")
    assert "search.json: cannot be read" in text
    assert f"remove {folder / 'unfinished'}" in text


def test_without_the_extra_a_command_names_it():
    program = "import sys; sys.modules['torch'] = None; from training.__main__ import app; app(sys.argv[1:])"
    command = (sys.executable, "-c", program, "bench", "--model", ".")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = "bench needs the package torch; run `python -m pip install 'tabrank[training]'`\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
