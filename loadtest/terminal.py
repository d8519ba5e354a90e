"""Terminal side of every command: call its measurement, print the report, exit by the verdict."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import typer

from loadtest.errors import INTERRUPTED
from loadtest.measure.verdict import EXIT_CODES
from loadtest.report.report import Report
from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing


def run_scenario(
    name: str,
    out: Path | None,
    measured: Callable[[Path], Report],
    summed_up: Callable[[Report], object],
    as_json: bool,
    *,
    writes: bool = True,
) -> None:
    """Measure, print the report or the reason for its absence, and exit by the verdict.

    `measured` writes its report, if it has one, to the given folder: `out`, or by default
    var/loadtest/NAME-TIME; without `writes` it writes none.
    """
    folder = out or Path("var/loadtest") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    try:
        if writes:
            refuse_existing(folder)
        report = measured(folder)
    except TabrankError as error:
        # `Commands` prints the error and exits with 2.
        if as_json:
            print(json.dumps({"verdict": "void", "reasons": [str(error)]}))
        raise
    except KeyboardInterrupt:
        raise TabrankError(INTERRUPTED) from None
    print(json.dumps(report) if as_json else summed_up(report))
    if folder.exists():
        print_progress(f"report: {folder / 'report.html'}")
    raise typer.Exit(EXIT_CODES[report["verdict"]])


def print_progress(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr)
