"""Tests of the sub-command: its example, and where it writes."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve.__main__ import app
from serve.operate.render.options import Kubernetes

CLUSTER = Path(__file__).with_name("cluster.yaml")


@pytest.fixture
def config(tmp_path):
    """Copy the cluster, beside which the files are written."""
    shutil.copy(CLUSTER, tmp_path)
    return tmp_path / "cluster.yaml"


def test_the_example_in_the_help_renders_a_file_or_the_same_text(config, monkeypatch):
    monkeypatch.chdir(config.parent)
    words = re.search(r"Example: python -m serve (.*)", Kubernetes.__doc__)[1].split()
    shown, written = (CliRunner().invoke(app, [*words, *more]) for more in ((), ("--out", "tabrank.yaml")))
    assert shown.exit_code == written.exit_code == 0, shown.stderr + written.stderr
    assert shown.stdout.startswith("# RayService and what it needs, rendered from cluster.yaml")
    assert (written.stdout, Path("tabrank.yaml").read_text()) == ("", shown.stdout)


def test_a_place_that_cannot_be_written_is_refused(config):
    words = ["--image", "image", "--volume", "tabrank=/mnt/tabrank", "--out", str(config / "x")]
    done = CliRunner().invoke(app, ["render", "kubernetes", str(config), *words])
    assert done.exit_code == 2
    assert "name a file that can be written" in done.stderr


def test_a_misspelt_command_is_refused_with_the_nearest_one():
    done = CliRunner().invoke(app, ["render", "kubernets"], env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert "Did you mean 'kubernetes'?" in done.stderr
