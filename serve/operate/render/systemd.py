"""Render the systemd unit of a service on one machine."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from string import Template

from serve.config.reader import Config
from serve.operate.host.environment import import_folders
from serve.operate.render.options import Systemd

UNIT = Path(__file__).with_name("templates") / "unit.service"


def systemd(config: Config, options: Systemd) -> str:
    """Return the unit that starts, reloads and stops the service as the current user."""
    serve = [sys.executable, "-m", "serve"]
    run = options.run.resolve()
    return Template(UNIT.read_text()).substitute(
        name=options.name,
        config=_escaped(config.path),
        user=getpass.getuser(),
        home=_escaped(config.path.parent),
        imports=_escaped(os.pathsep.join(import_folders(config))),
        run=_escaped(run),
        up=_command([*serve, "up", config.path, "--run", run]),
        down=_command([*serve, "down", "--run", run]),
    )


def _escaped(path: str | Path) -> str:
    """Return a path with systemd's specifiers escaped."""
    return str(path).replace("%", "%%")


def _command(words: list[str | Path]) -> str:
    """Return a command line with quotes, escapes, variables and specifiers escaped for systemd."""
    quoted = (_escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$") for word in words)
    return " ".join(f'"{word}"' for word in quoted)
