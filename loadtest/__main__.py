"""`python -m loadtest`: prove rate and latency of a service that runs."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from loadtest.bodies import make_bodies
from loadtest.errors import LoadtestError
from loadtest.ids import read_ids, read_log_ids
from loadtest.measure import measure
from loadtest.profiles import load_profile, load_slo
from loadtest.report import Report, make_report, refuse_existing, summary, write_report
from loadtest.service import DEFAULT_URL, probe
from loadtest.verdict import EXIT_CODES, judge

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def commands() -> None:
    """Load tests. Exit codes: 0 held, 1 not held, 2 void or could not be run."""


@app.command()
def run(
    profile: Annotated[
        str, typer.Option(help="headline, modest, or a .toml file with the same keys")
    ] = "headline",
    url: Annotated[str, typer.Option(help="the service under load")] = DEFAULT_URL,
    slo: Annotated[
        Path | None, typer.Option(help="TOML file with other limits than the shipped ones")
    ] = None,
    log: Annotated[Path, typer.Option(help="log folder to take viewers and candidates from")] = Path(
        "var/log"
    ),
    ids: Annotated[
        Path | None, typer.Option(help="JSON file of viewers and candidates, instead of a log")
    ] = None,
    rps: Annotated[float | None, typer.Option(help="requests a second, instead of the profile's")] = None,
    duration: Annotated[float | None, typer.Option(help="seconds measured, instead of the profile's")] = None,
    warmup: Annotated[float | None, typer.Option(help="seconds before, not counted, likewise")] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to write, var/loadtest/PROFILE-TIME by default")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as one JSON object")] = False,
) -> None:
    """Load the service at --url in an open loop and hold its answers against an SLO.

    Exit codes: 0 held, 1 not held, 2 void (the generator was late, or there is no service) or unusable input.
    """
    try:
        report, folder = _run(profile, url, slo, log, ids, rps, duration, warmup, out)
    except LoadtestError as error:
        if as_json:
            print(json.dumps({"profile": profile, "url": url, "verdict": "void", "reasons": [str(error)]}))
        _say(str(error))
        raise typer.Exit(EXIT_CODES["void"]) from None
    except KeyboardInterrupt:
        _say("interrupted: no verdict")
        raise typer.Exit(EXIT_CODES["void"]) from None
    print(json.dumps(report) if as_json else summary(report))
    _say(f"written to {folder / 'report.html'}")
    raise typer.Exit(EXIT_CODES[report["verdict"]])


def _run(
    profile_name: str,
    url: str,
    slo_file: Path | None,
    log: Path,
    ids_file: Path | None,
    rps: float | None,
    duration_s: float | None,
    warmup_s: float | None,
    out: Path | None,
) -> tuple[Report, Path]:
    profile = load_profile(profile_name, target_rps=rps, duration_s=duration_s, warmup_s=warmup_s)
    slo = load_slo(slo_file)
    folder = out or Path("var/loadtest") / f"{profile.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    refuse_existing(folder)
    ids = read_ids(ids_file) if ids_file else read_log_ids(log, profile.candidates)
    bodies = make_bodies(ids, profile)
    probe(url, bodies[0])
    from loadtest.run import run_load  # patches the standard library for gevent: not before it is needed

    done = run_load(profile, url, bodies)
    measured = measure(done.requests, profile.duration_s)
    verdict, reasons = judge(measured, slo)
    report = make_report(profile, url, slo, measured, verdict, reasons)
    write_report(folder, report, done.requests, profile, slo, done.locust_html)
    return report, folder


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    app(prog_name="python -m loadtest")
