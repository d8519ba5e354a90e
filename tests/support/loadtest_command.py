"""Run `python -m loadtest` in tests, and find the processes that it left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from loadtest.targets.processes import MARKER

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
LOADTEST = (sys.executable, "-m", "loadtest")
IDS = {"viewers": [f"v{i}" for i in range(50)], "candidates": [f"c{i}" for i in range(60)]}


def run_loadtest(folder, *arguments, program=LOADTEST):
    """Run a command with --json in a folder; return the exit code, the object and stderr."""
    command = [*program, *map(str, arguments), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=ENVIRONMENT, timeout=240, check=False
    )
    return done.returncode, json.loads(done.stdout or "null"), done.stderr


def interrupted(folder, begun, *arguments, program=LOADTEST):
    """Interrupt a command once `begun` is true; return the exit code, stdout and stderr."""
    command = [*program, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not begun() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, messages = process.communicate(timeout=120)
    return process.returncode, printed, messages


def with_ids(folder):
    """Write a file of ids into a folder, and return the options that name it."""
    (folder / "ids.json").write_text(json.dumps(IDS))
    return "--ids", "ids.json"


def left(work):
    """Return the names of the running processes of a workspace's services."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER, "").startswith(work.id):
                found.append(process.name())
        except (psutil.Error, OSError):
            pass
    return found
