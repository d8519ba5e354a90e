"""`python -m loadtest`: measure throughput and latency of a running service or of a new one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from loadtest.generator.ids import find_ids, read_log_kinds
from loadtest.measure.service import DEFAULT_URL
from loadtest.report.report import Report
from loadtest.report.run import findings
from loadtest.scenarios.run import run_profile
from loadtest.targets.running import running_url
from loadtest.targets.workspace import Workspace
from loadtest.terminal import print_progress, run_scenario
from loadtest.workload.profiles import load_profile, load_slo
from serve.contract.commands import command_line
from serve.contract.rankings import MAX_CANDIDATES

app = command_line(__doc__, rich_markup_mode=None)

LOG, CONFIG = Path("var/log"), Path("cluster.yaml")
# Folder of the log, model and store of the commands that start a service of their own.
WORK = Workspace(Path("var/bench"))
Url = Annotated[
    str | None,
    typer.Option(
        help="URL of the running service; records that the test posts stay in its store and log",
        show_default=f"the service of var/run, or {DEFAULT_URL}",
    ),
]
Log = Annotated[Path, typer.Option(help="log folder that supplies viewers, candidates and kinds of events")]
Ids = Annotated[Path | None, typer.Option(help="JSON file of viewers and candidates, used instead of a log")]
Config = Annotated[Path, typer.Option(help="the cluster.yaml to measure")]
Out = Annotated[Path | None, typer.Option(help="folder for the report; var/loadtest/NAME-TIME by default")]
Json = Annotated[bool, typer.Option("--json", help="print the report as one JSON object")]


@app.callback()
def commands() -> None:
    """Run load tests.

    Each command measures the service and compares the figures with limits. Exit code 0: all limits
    held. 1: a limit did not hold. 2: there is no valid measurement, or the run failed.
    """


@app.command()
def run(
    profile: Annotated[str, typer.Option(help="shipped profile, or path of a .toml file")] = "headline",
    url: Url = None,
    slo: Annotated[
        Path | None, typer.Option(help="TOML file of limits that replace the shipped ones")
    ] = None,
    log: Log = LOG,
    ids: Ids = None,
    rps: Annotated[float | None, typer.Option(help="requests per second; overrides the profile")] = None,
    duration: Annotated[float | None, typer.Option(help="measured seconds; overrides the profile")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Load the service at --url in an open loop and check its answers against an SLO.

    In an open loop each request is sent when it is due, however slow earlier answers are. The SLO
    (service level objective) limits the p90, the p99, the share of errors, and the share of answers
    that are not full; --slo replaces its values.

    The shipped profiles are headline (900 requests/s), modest (300), step, spike and diurnal. The
    last three have a shape, which changes the rate over time. The limits are the same, and hold for
    the whole run. The report also has the time until the limits held again after each step up, and
    report.json the numbers of each phase. `serve plan` can read a report's timeline.csv as a trace.

    Exit code 0: the limits held. 1: they did not hold. 2: there is no valid measurement, because
    the load generator was late, no service answered, or the input is unusable.
    """

    def measured(folder: Path) -> Report:
        load = load_profile(profile, target_rps=rps, duration_s=duration)
        used, load = find_ids(ids, log, load, print_progress)
        return run_profile(load, load_slo(slo), running_url(url), used, folder)

    run_scenario(Path(profile).stem, out, measured, findings, as_json)


@app.command()
def freshness(
    url: Url = None,
    log: Log = LOG,
    ids: Ids = None,
    rate: Annotated[float, typer.Option(min=1, max=10_000, help="rankings per second")] = 900,
    events: Annotated[float, typer.Option(min=1, max=10_000, help="viewer events per second")] = 500,
    duration: Annotated[float, typer.Option(min=1, max=600, help="measured seconds")] = 30,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure, under load, the time from an event to the first ranking that shows it.

    Five probe events per second are posted, after a warm-up of 10 s. The p99 of this time must be
    below 1 s. The rates of rankings and of events must reach 95 % of their targets, and no ranking
    may fail. Rankings follow the headline profile.

    The test posts synthetic viewer events to the service at --url, and the service keeps them. Do
    not run it against a service in production use.

    Exit code 0: the limits held. 1: they did not hold. 2: there is no valid measurement, because
    the load generator was late, no service answered, or the input is unusable.
    """
    from loadtest.report.freshness import freshness_findings
    from loadtest.scenarios.freshness import FreshnessPlan, run_freshness

    def measured(folder: Path) -> Report:
        profile = load_profile("headline", target_rps=rate, duration_s=duration)
        kinds = None if ids else read_log_kinds(log)
        used, profile = find_ids(ids, log, profile, print_progress)
        return run_freshness(
            FreshnessPlan(profile, events), running_url(url), used, kinds, load_slo(), folder
        )

    run_scenario("freshness", out, measured, freshness_findings, as_json)


@app.command()
def knee(
    config: Config = CONFIG,
    candidates: Annotated[int, typer.Option(min=1, max=MAX_CANDIDATES, help="candidates per request")] = 55,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Start the service and find the highest rate that holds the shipped SLO. About 5 minutes.

    This rate is called the knee. The load is an open loop: each request is sent when it is due.

    Exit code 0: a rate was found. 1: no rate held. 2: there is no valid measurement, because the
    load generator was late or the run failed.
    """
    from loadtest.report.knee import knee_findings
    from loadtest.scenarios.knee import run_knee

    measured = partial(run_knee, WORK, config, candidates, emit=print_progress)
    run_scenario("knee", out, measured, knee_findings, as_json)


@app.command()
def compare(
    seconds: Annotated[int, typer.Option(min=1, max=600, help="seconds of each service in a round")] = 6,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Compare tabrank and plain FastAPI in turns. About 10 minutes.

    Both services run the whole time, and the load goes to one of them after the other, in five
    rounds at each load. There are seven loads: a closed loop on 1, 8, 32 and 64 connections, then
    an open loop at 10, 100 and 900 requests/s. A service must answer 90 % of the requests of a rate
    in full in the first round. Otherwise it is not measured at this rate in the later rounds.

    Exit code 0: both services were measured at all loads. 1: a service was not measured at a load.
    2: there is no valid measurement, because the load generator was late or the run failed.
    """
    from loadtest.report.compare import compare_findings
    from loadtest.scenarios.compare import run_compare

    measured = partial(run_compare, WORK, emit=print_progress, seconds=seconds)
    run_scenario("compare", out, measured, compare_findings, as_json)


@app.command()
def overload(
    config: Config = CONFIG,
    times: Annotated[str, typer.Option(help="offered rates, as multiples of the knee")] = "1.2,2,3",
    knee: Annotated[float | None, typer.Option(min=1, help="the knee in req/s, if you know it")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Overload the service on its own core. About 13 minutes.

    The service runs on one core and the load generator on another. The knee is the highest rate
    that holds the SLO. It is measured before and after the overloads, and the lower value counts.
    --knee skips both measurements; name a value that was measured with the same pinning.

    The main limits follow; docs/overload.md lists all.

    - Full answers per second reach 75 % of the knee while the offered rate is at most 1.2 times the
    knee, 50 % while it is at most twice the knee, and 30 % above that.

    - The p99 of the answers is at most 100 ms.

    - Requests may be refused, but may not fail otherwise.

    - At most 2 s after the overload, all answers are full again.

    At the end, as a control, the service gets twice the knee without load shedding. This control
    must fail.

    Exit code 0: the limits held. 1: they did not hold. 2: there is no valid measurement, because
    the load generator was late or the run failed.
    """
    from loadtest.report.overload import overload_findings
    from loadtest.scenarios.overload import read_times, run_overload
    from loadtest.scenarios.overload_verdict import Overload

    def measured(folder: Path) -> Report:
        loads = [Overload(each) for each in read_times(times)]
        return run_overload(WORK, config, loads, folder, print_progress, knee)

    run_scenario("overload", out, measured, overload_findings, as_json)


@app.command()
def chaos(
    config: Config = CONFIG,
    fault: Annotated[list[str] | None, typer.Option(help="fault; repeat for more; all by default")] = None,
    rate: Annotated[float | None, typer.Option(min=1, help="requests/s, instead of 60 % of the knee")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Start the service and inject faults under load. Under 20 minutes.

    Faults are kills, hangs, pauses, a damaged store, a full disk and redeploys. The report lists
    the allowed and the measured effect of each fault; docs/chaos.md has the table.

    Exit code 0: all limits held. 1: a limit did not hold. 2: there is no valid measurement, because
    the load generator was late or the run failed.
    """
    from loadtest.report.chaos import chaos_findings
    from loadtest.scenarios.chaos.run import run_chaos

    measured = partial(run_chaos, WORK, config, fault or (), rate, emit=print_progress)
    run_scenario("chaos", out, measured, chaos_findings, as_json)


if __name__ == "__main__":
    app(prog_name="python -m loadtest")
