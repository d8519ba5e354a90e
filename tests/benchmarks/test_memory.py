"""Test the measure of memory, and its command on a small log."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import psutil
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.memory import held_bytes, memory, table

HOLD = """
import mmap, sys, tempfile
import numpy as np
held = bytearray(64 << 20)
file = tempfile.TemporaryFile(dir="/var/tmp")
file.truncate(64 << 20)
array = np.frombuffer(mmap.mmap(file.fileno(), 64 << 20), np.uint8)
array[:] = 1
print("ready", flush=True)
sys.stdin.read()
"""


def test_memory_of_children_counts_and_pages_of_files_do_not():
    process = psutil.Process()
    before = held_bytes(process)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD], **pipes) as child:
        child.stdout.readline()
        more = held_bytes(process) - before
        child.communicate("")
    assert 64 << 20 < more < 112 << 20


def test_a_log_is_simulated_and_evaluated(tmp_path):
    # The command itself takes no log as small as this one.
    result = memory([8_000], tmp_path, ["fit", "evaluate"], epochs=1, budget="10s")
    lines = result["lines"]
    assert not result["failed"]
    assert [(line["command"], line["rows"]) for line in lines] == [("fit", 8_000), ("evaluate", 8_000)]
    assert all(0 < line["peak_bytes"] < 2 << 30 for line in lines)
    assert np.isfinite([line["seconds"] for line in lines]).all()
    rows = [row.split()[:2] for row in table(result).splitlines()]
    assert rows[1:] == [["fit", "8,000"], ["evaluate", "8,000"]]


def test_an_unknown_command_is_refused(tmp_path):
    done = CliRunner().invoke(app, ["memory", "--out", str(tmp_path), "--command", "publish"])
    assert done.exit_code == 2
    assert "--command publish: must be one of fit, evaluate, search, refresh" in done.stderr
