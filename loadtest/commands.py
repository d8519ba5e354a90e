"""The project's own commands, run one after the other by a longer one."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.errors import LoadtestError

PR_SET_PDEATHSIG = 1


class CommandFailed(LoadtestError):
    """A command failed; the message says which, and what it said last."""


def run_command(package: str, *arguments: str, log: Path, accept: Sequence[int] = (0,)) -> dict[str, Any]:
    """One of the project's commands, its JSON answer; what it says on stderr is appended to `log`."""
    with log.open("a") as file:
        file.write(f"$ python -m {package} {' '.join(arguments)}\n")
        file.flush()
        # `serve up` leaves a service behind that outlives its command; everything else ends with us
        done = subprocess.run(
            [sys.executable, "-m", package, *arguments, "--json"],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            preexec_fn=die_with_parent,
            check=False,
        )
        file.write(done.stdout)
    if done.returncode not in accept:
        raise CommandFailed(f"python -m {package} {arguments[0]} failed:\n  " + "\n  ".join(last_lines(log)))
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def last_lines(log: Path, count: int = 3) -> list[str]:
    """The last lines of a log that is there."""
    return log.read_text(errors="replace").strip().splitlines()[-count:]


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Send this process a signal when its parent ends, however that ends: a killed demo leaves no training behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
