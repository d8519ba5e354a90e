"""Tests of `make install` where it must fail: it names the remedy, and does not look installed."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOO_OLD = "exit 1"
# Debian's python3 without python3-venv leaves the interpreter's folder behind.
WITHOUT_VENV = '[ "$2" = venv ] && mkdir -p .venv/bin && touch .venv/bin/python && exit 1; exit 0'


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (TOO_OLD, "tabrank needs Python 3.11 or newer; name one: make install PYTHON=python3.11"),
        (WITHOUT_VENV, "apt-get install python3-venv"),
    ],
)
def test_a_python_that_cannot_be_used_is_refused_with_the_remedy_each_time(python, message, tmp_path):
    for name in ("Makefile", "pyproject.toml", "lock.txt", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    program = tmp_path / "python3"
    program.write_text(f"#!/bin/sh\n{python}\n")
    program.chmod(0o755)
    for _ in range(2):
        command = ["make", "install", f"PYTHON={program}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert message in done.stderr
        assert not (tmp_path / ".venv/.installed").exists()
