"""Commands of `training` in the process of a test, which spares each the import of torch."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import training.__main__


def call(*arguments: object, cwd: Path) -> str:
    """Run a command that starts no process of its own, and return what it prints."""
    with contextlib.chdir(cwd):
        done = CliRunner().invoke(training.__main__.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output[-2_000:]
    return done.stdout


def call_json(*arguments: object, cwd: Path) -> Any:
    """Run a command, and return its JSON."""
    return json.loads(call(*arguments, "--json", cwd=cwd))
