"""Call the measurement of a command, print its report, and exit by its verdict."""

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
) -> None:
    """Measure, print the report, and exit by its verdict.

    `measured` takes the new folder in which to write its report: `out`, or var/loadtest/NAME-TIME
    by default. `summed_up` turns the report into text for the terminal.

    Raises:
        TabrankError: if the measurement is impossible or was interrupted. With `as_json` the reason
            is also printed as a report with the verdict "void".
    """
    folder = out or Path("var/loadtest") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    try:
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
    print_progress(f"report: {folder / 'report.html'}")
    raise typer.Exit(EXIT_CODES[report["verdict"]])


def print_progress(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr)
