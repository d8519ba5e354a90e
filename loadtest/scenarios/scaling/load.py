"""Run `python -m loadtest run` as a separate process during a scaling test, and read its report."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.commands import die_with_parent, last_lines
from loadtest.errors import LoadtestError
from loadtest.measure.verdict import listed
from loadtest.targets.workspace import Workspace
from loadtest.workload.profiles import Profile

# Time for a run to start and to write its report.
OVERTIME_S = 60.0


@dataclass
class LoadProcess:
    """Running load test, and its report folder once it has ended."""

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    seconds: float

    def report(self) -> dict[str, Any]:
        """Wait for the end of the run and return its report.

        Raises:
            LoadtestError: if the run failed.
        """
        try:
            self.process.wait(self.seconds + OVERTIME_S)
        except subprocess.TimeoutExpired:
            raise LoadtestError(f"the load did not end; see {self.log}") from None
        if not (self.folder / "report.json").exists():
            raise LoadtestError("the load test failed:\n  " + "\n  ".join(last_lines(self.log)))
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return report


@contextlib.contextmanager
def loading(
    profile: Profile, url: str, cluster: str, work: Workspace, folder: Path, token: str = ""
) -> Iterator[LoadProcess]:
    """Load a service while the block runs, or longer; the report goes to `folder`.

    `cluster` names the cluster whose replicas and nodes are counted, as in `run --cluster`; `token`
    is its secret.
    """
    log, file = work.path / f"{profile.name}-load.log", work.path / f"{profile.name}.toml"
    file.write_text(_toml(profile))
    command = [sys.executable, "-m", "loadtest", "run", "--json", "--profile", str(file)]
    command += ["--url", url, "--log", str(work.log), "--cluster", cluster]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--out", str(folder)],
            env={**os.environ, **({"RAY_AUTH_TOKEN": token} if token else {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,
        )
    try:
        yield LoadProcess(process, folder, log, profile.warmup_s + profile.duration_s)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def moments(folder: Path) -> list[Mapping[str, float | None]]:
    """Return the rows of a run's timeline.csv."""
    with (folder / "timeline.csv").open(newline="") as file:
        return [
            {key: float(value) if value else None for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def failures(found: Mapping[str, Any]) -> list[str]:
    """Return the failed requests of a run as a reason; empty if none failed."""
    if not found["errors"]:
        return []
    return [f"{found['errors']} of {found['requests']} requests failed: {listed(found['error_kinds'])}"]


def after(seconds: float | None) -> str:
    """Return the seconds after an event as text."""
    return "never after" if seconds is None else f"{seconds:g} s after"


def _toml(profile: Profile) -> str:
    shape = ", ".join(f"[{at_s:g}, {factor:g}]" for at_s, factor in profile.line)
    numbers = ("target_rps", "candidates", "warmup_s", "duration_s", "viewer_skew")
    return "".join(f"{name} = {getattr(profile, name):g}\n" for name in numbers) + f"shape = [{shape}]\n"
