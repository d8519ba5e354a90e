"""The systemd unit: systemd accepts it, and the service survives its supervisor."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from serve.config.reader import read
from serve.operate.render.options import Systemd
from serve.operate.render.systemd import systemd

CONFIG = Path(__file__).parents[4] / "cluster.yaml"


def unit(config=CONFIG, run=Path("/srv/tabrank/run")):
    text = systemd(read(config), Systemd(config=config, run=run))
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str
    parser.read_string(text)
    return text, parser["Service"]


def test_a_dead_supervisor_is_started_again_and_takes_no_process_with_it():
    _, service = unit()
    assert (service["Restart"], service["KillMode"], service["OOMPolicy"]) == (
        "on-failure",
        "process",
        "continue",
    )
    assert service["Type"] == "forking"
    assert service["PIDFile"] == "/srv/tabrank/run/supervisor.pid"


def test_starting_reloading_and_stopping_are_our_own_commands():
    _, service = unit()
    serve = f'"{sys.executable}" "-m" "serve"'
    assert service["ExecStart"] == service["ExecReload"]
    assert service["ExecStart"] == f'{serve} "up" "{CONFIG.resolve()}" "--run" "/srv/tabrank/run"'
    assert service["ExecStop"] == f'{serve} "down" "--run" "/srv/tabrank/run"'


@pytest.mark.parametrize("folder", ["plain", "a b", "50%", "$HOME"])
def test_systemd_takes_the_unit_whatever_the_paths_are(folder):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing: apt-get install systemd")
    # Not in `tmp_path`, which may be in /dev: systemd takes no path of it.
    with tempfile.TemporaryDirectory() as parent:
        home, path = Path(parent) / folder, Path(parent) / "tabrank.service"
        home.mkdir()
        shutil.copy(CONFIG, home)
        text, _ = unit(home / "cluster.yaml", home / "run")
        path.write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
