"""Test the measure of memory, and its command on a small log."""

from __future__ import annotations

import subprocess
import sys

import psutil

from benchmarks.memory import _run, held_bytes, memory, table

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


def test_each_command_gets_what_the_one_before_it_wrote(tmp_path, monkeypatch):
    calls = []

    def run(name, *given):
        calls.append([name, *map(str, given)])
        return {"seconds": 2.0, "peak_bytes": 3 << 30, "failed": name == "search"}

    monkeypatch.setattr("benchmarks.memory._run", run)
    lines = memory([50_000], tmp_path)
    names = ["simulate", "fit", "evaluate", "search", "publish", "refresh"]
    assert [name for name, *_ in calls] == names
    assert [call for call in calls if str(tmp_path / "log-50000") not in call] == [
        ["publish", "--model", str(tmp_path / "model-50000"), "--models", str(tmp_path / "models-50000")]
    ]
    rows = [row.split() for row in table(lines).splitlines()[1:]]
    assert rows[0] == ["fit", "50,000", "2", "40", "3.00"]
    assert [row[0] for row in rows if "(failed)" in row] == ["search"]


def test_a_command_is_run_to_its_end():
    found = _run("simulate", "--help")
    assert not found["failed"]
    assert 1 << 20 < found["peak_bytes"] < 2 << 30
    assert found["seconds"] > 0
    assert _run("no-such-command")["failed"]
