"""Run the project's own commands as subprocesses and return their JSON output."""

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


def run_command(package: str, *arguments: str, log: Path, accept: Sequence[int] = (0,)) -> dict[str, Any]:
    """Run a command with `--json` and return its JSON output; append its stderr to `log`.

    Raises:
        LoadtestError: if the exit code is not in `accept`.
    """
    with log.open("a") as file:
        file.write(f"$ python -m {package} {' '.join(arguments)}\n")
        file.flush()
        # `serve up` leaves a service that outlives its command. All other processes end with the
        # parent.
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
        raise failure(f"python -m {package} {arguments[0]} failed", log)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def failure(what: str, log: Path, num_lines: int = 3) -> LoadtestError:
    """Return the error of a process, with the last lines of its existing log."""
    last = log.read_text(errors="replace").strip().splitlines()[-num_lines:]
    return LoadtestError("\n  ".join([f"{what}:", *last]))


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Send this process a signal when its parent ends, even if the parent is killed.

    So a killed demo leaves no training behind. Linux only; elsewhere the call does nothing.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
