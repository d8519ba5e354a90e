"""Measure the seconds and the peak memory of the training commands, by the rows of a log.

Memory means the anonymous pages of a command and all its children, and what these share with each
other. Pages of files are not counted, because the kernel drops them when it needs the room.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from training.terminal import print_progress

# The memory of all processes is summed at this interval.
EVERY_S = 0.05
# The modules that each command imports before it reads a log.
IMPORTS = {
    "fit": "training.fit.fit",
    "evaluate": "training.evaluation.evaluate",
    "search": "training.search.search",
    "refresh": "training.search.search",
}
READ_OWN = "from benchmarks.memory import held_bytes; import psutil; print(held_bytes(psutil.Process()))"


def memory(rows: Sequence[int], out: Path) -> list[dict[str, Any]]:
    """Run the commands on a simulated log of each size, and return a line for each run.

    The logs stay in `out`, where a second call finds them. `evaluate` and `refresh` use the model
    that `fit` wrote for that log. A line holds the command's `seconds`, the peak memory of all its
    processes minus that of the command after its imports, and whether it `failed`. Exit code 1 is
    no failure: it says that the model did not pass.
    """
    lines = []
    for num in rows:
        log, model, models = (out / f"{what}-{num}" for what in ("log", "model", "models"))
        if not log.exists():
            _run("simulate", "--rows", num, "--out", log)
        for name in IMPORTS:
            target = ("--surface", "spaces", "--log", log, "--budget", "10m")
            given: dict[str, tuple[Any, ...]] = {
                "fit": ("--surface", "spaces", "--log", log, "--out", model, "--epochs", 1),
                "evaluate": ("--model", model, "--log", log),
                "search": (*target, "--out", out / f"search-{num}"),
                "refresh": (*target, "--models", models),
            }
            if name == "refresh":
                _run("publish", "--model", model, "--models", models)
            print_progress(f"{name} on {num:,} rows")
            lines.append({"command": name, "rows": num} | _run(name, *given[name]))
    return lines


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the lines as a table."""
    found = pd.DataFrame(lines)
    shown = {
        "command": found["command"] + found["failed"].map({True: " (failed)", False: ""}),
        "rows": found["rows"].map("{:,}".format),
        "seconds": found["seconds"].map("{:.0f}".format),
        "seconds per million rows": (found["seconds"] / found["rows"] * 1e6).map("{:.0f}".format),
        "GiB beyond the imports": (found["peak_bytes"] / 2**30).map("{:.2f}".format),
    }
    return pd.DataFrame(shown).to_string(index=False)


def _run(name: str, *given: Any) -> dict[str, Any]:
    """Run a command to its end, and return its seconds and its peak memory."""
    base = 0
    if name in IMPORTS:
        code = f"import {IMPORTS[name]}; {READ_OWN}"
        base = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    command = [sys.executable, "-m", "training", name, *map(str, given)]
    began_s, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, held_bytes(psutil.Process(process.pid)))
            time.sleep(EVERY_S)
    failed = process.returncode not in (0, 1)
    return {"seconds": time.monotonic() - began_s, "peak_bytes": peak - base, "failed": failed}


def held_bytes(process: psutil.Process) -> int:
    """Return the anonymous memory of a process and its children, plus the most that one shares."""
    own = shared = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for one in family:
        try:
            lines = Path(f"/proc/{one.pid}/status").read_text().splitlines()
        except OSError:  # It has ended.
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith("Rss")}
        own += sizes.get("RssAnon", 0)
        shared = max(shared, sizes.get("RssShmem", 0))
    return own + shared
