"""Run the project's own commands as subprocesses and return what they print."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.errors import LoadtestError

PR_SET_PDEATHSIG = 1


def run_command(package: str, *arguments: str, log: Path, accept: Sequence[int] = (0,)) -> str:
    """Run a command and return its stdout.

    The command line, its stderr and its stdout are appended to the file `log`.

    Raises:
        LoadtestError: if the exit code is not in `accept`.
    """
    with log.open("a") as file:
        file.write(f"$ python -m {package} {' '.join(arguments)}\n")
        file.flush()
        # A service that `serve up` starts outlives the command. All other processes must end with
        # their parent.
        done = subprocess.run(
            [sys.executable, "-m", package, *arguments],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            preexec_fn=die_with_parent,
            check=False,
        )
        file.write(done.stdout)
    if done.returncode not in accept:
        raise failure(f"python -m {package} {arguments[0]} failed", log)
    return done.stdout


def failure(what: str, log: Path) -> LoadtestError:
    """Return an error that says `what` happened, with the last three lines of the file `log`."""
    last = log.read_text(errors="replace").strip().splitlines()[-3:]
    return LoadtestError("\n  ".join([f"{what}:", *last]))


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Let Linux send this process a signal when its parent ends, even if the parent is killed.

    Thus a killed demo leaves no training process behind. On other systems the call does nothing.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
