"""Tests of the sub-commands: their examples, and where they write."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve.__main__ import app
from serve.operate.render.options import SUB_COMMANDS

CLUSTER = Path(__file__).with_name("cluster.yaml")


@pytest.fixture
def config(tmp_path):
    """Copy the cluster, beside which the files are written."""
    shutil.copy(CLUSTER, tmp_path)
    return tmp_path / "cluster.yaml"


@pytest.mark.parametrize("options", SUB_COMMANDS)
def test_the_example_in_the_help_renders_a_file(options, config, monkeypatch):
    monkeypatch.chdir(config.parent)
    words = re.search(r"Example: python -m serve (.*)", options.__doc__)[1].split()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    text = Path(words[-1]).read_text() if "--out" in words else done.stdout
    assert text.startswith("#")
    assert "cluster.yaml" in text


def test_json_is_one_object_with_the_text_or_its_place(config):
    out = config.with_name("tabrank.service")
    shown, placed = (
        json.loads(CliRunner().invoke(app, ["render", "systemd", str(config), "--json", *more]).stdout)
        for more in ([], ["--out", str(out)])
    )
    assert placed == {"out": str(out), "text": None}
    assert shown == {"out": None, "text": out.read_text()}


def test_a_place_that_cannot_be_written_is_refused(config):
    done = CliRunner().invoke(app, ["render", "systemd", str(config), "--out", str(config / "x")])
    assert done.exit_code == 2
    assert "name a file that can be written" in done.stderr


def test_a_misspelt_command_is_refused_with_the_nearest_one():
    done = CliRunner().invoke(app, ["render", "kubernets"], env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert "Did you mean 'kubernetes'?" in done.stderr


def test_the_help_lists_the_files_that_can_be_written():
    done = CliRunner().invoke(app, ["render", "--help"], env={"COLUMNS": "300"})
    assert {"kubernetes", "systemd"} <= set(done.stdout.split())
