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

LOG, WORK, CONFIG = Path("var/log"), Path("var/bench"), Path("cluster.yaml")
Url = Annotated[
    str | None,
    typer.Option(
        help="URL of the running service; records that the test posts stay in its store and log",
        show_default=f"the service of var/run, or {DEFAULT_URL}",
    ),
]
Log = Annotated[Path, typer.Option(help="log folder that supplies viewers, candidates and kinds of events")]
Ids = Annotated[Path | None, typer.Option(help="JSON file of viewers and candidates, used instead of a log")]
Work = Annotated[Path, typer.Option(help="folder of the log, model and store; created if it is missing")]
Config = Annotated[Path, typer.Option(help="the cluster.yaml to measure")]
Out = Annotated[Path | None, typer.Option(help="folder for the report; var/loadtest/NAME-TIME by default")]
SloFile = Annotated[Path | None, typer.Option(help="TOML file of limits that replace the shipped ones")]
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
    slo: SloFile = None,
    log: Log = LOG,
    ids: Ids = None,
    rps: Annotated[float | None, typer.Option(help="requests per second; overrides the profile")] = None,
    duration: Annotated[float | None, typer.Option(help="measured seconds; overrides the profile")] = None,
    warmup: Annotated[float | None, typer.Option(help="warm-up seconds; overrides the profile")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="run folder of `serve up` or URL of a Ray dashboard, from which replicas and nodes are "
            "counted; by default var/run if its service is the one at --url"
        ),
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Load the service at --url in an open loop and check its answers against an SLO.

    In an open loop each request is sent when it is due, however slow earlier answers are. The SLO
    (service level objective) limits the p90, the p99, the share of errors, and the share of answers
    that are not full; --slo replaces its values.

    The shipped profiles are headline (900 requests/s), modest (300), step, spike and diurnal. The
    last three have a shape, which changes the rate over time. The limits are the same, and hold for
    the whole run. The report also lists each phase, and the time until the limits held again after
    each step up. `serve plan` can read the report's timeline.csv as a trace.

    Exit code 0: the limits held. 1: they did not hold. 2: there is no valid measurement, because
    the load generator was late, no service answered, or the input is unusable.
    """

    def measured(folder: Path) -> Report:
        load = load_profile(profile, target_rps=rps, duration_s=duration, warmup_s=warmup)
        used, load = find_ids(ids, log, load, print_progress)
        return run_profile(load, load_slo(slo), running_url(url), used, cluster, folder)

    run_scenario(Path(profile).stem, out, measured, findings, as_json)


@app.command()
def freshness(
    url: Url = None,
    log: Log = LOG,
    ids: Ids = None,
    rate: Annotated[float, typer.Option(min=1, max=10_000, help="rankings per second")] = 900,
    events: Annotated[float, typer.Option(min=1, max=10_000, help="viewer events per second")] = 500,
    probes: Annotated[float, typer.Option(min=0.1, max=100, help="probe events per second")] = 5,
    duration: Annotated[float, typer.Option(min=1, max=600, help="measured seconds")] = 30,
    warmup: Annotated[float, typer.Option(min=0, max=600, help="warm-up seconds, without probes")] = 10,
    slo: SloFile = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure, under load, the time from an event to the first ranking that shows it.

    The p99 of this time must be below 1 s. The rates of rankings and of events must reach 95 % of
    their targets, and no ranking may fail. Rankings follow the headline profile.

    The test posts synthetic viewer events to the service at --url, and the service keeps them. Do
    not run it against a service in production use.

    Exit code 0: the limits held. 1: they did not hold. 2: there is no valid measurement, because
    the load generator was late, no service answered, or the input is unusable.
    """
    from loadtest.report.freshness import freshness_findings
    from loadtest.scenarios.freshness import FreshnessPlan, run_freshness

    def measured(folder: Path) -> Report:
        profile = load_profile("headline", target_rps=rate, duration_s=duration, warmup_s=warmup)
        kinds = None if ids else read_log_kinds(log)
        used, profile = find_ids(ids, log, profile, print_progress)
        plan = FreshnessPlan(profile, events, probes)
        return run_freshness(plan, running_url(url), used, kinds, load_slo(slo), folder)

    run_scenario("freshness", out, measured, freshness_findings, as_json)


@app.command()
def slow(
    url: Url = None,
    log: Log = LOG,
    ids: Ids = None,
    rps: Annotated[float, typer.Option(min=50, help="normal requests per second")] = 300,
    clients: Annotated[int, typer.Option(min=2, max=2_000, help="slow clients")] = 500,
    pairs: Annotated[int, typer.Option(min=1, max=100, help="pairs of windows to measure")] = 5,
    as_json: Json = False,
) -> None:
    """Measure how clients that send one byte per second affect normal requests.

    Half of the slow clients send their headers slowly, the other half their bodies. Windows without
    and with slow clients alternate, --pairs times. With them, the p99 of normal requests may be at
    most 1.2 times as long as without them, and no normal request may fail.

    Exit code 0: the limits held. 1: they did not hold. 2: there is no valid measurement, because
    the load generator was late or the run failed.
    """
    from loadtest.scenarios.slow import run_slow, slow_summary

    def measured(_: Path) -> Report:
        used, profile = find_ids(ids, log, load_profile("headline", target_rps=rps), print_progress)
        return run_slow(profile, running_url(url), used, clients, pairs)

    run_scenario("slow", None, measured, slow_summary, as_json, writes=False)


@app.command()
def knee(
    work: Work = WORK,
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

    measured = partial(run_knee, Workspace(work), config, candidates, emit=print_progress)
    run_scenario("knee", out, measured, knee_findings, as_json)


@app.command()
def compare(
    work: Work = WORK,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="number of rounds at each load")] = 5,
    seconds: Annotated[int, typer.Option(min=1, max=600, help="seconds of each service in a round")] = 6,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Compare tabrank and plain FastAPI in turns. About 10 minutes.

    Both services run the whole time, and the load goes to one of them after the other. There are
    seven loads: a closed loop on 1, 8, 32 and 64 connections, then an open loop at 10, 100 and 900
    requests/s. A service must answer 90 % of the requests of a rate in full in the first round.
    Otherwise it is not measured at this rate in the later rounds.

    Exit code 0: both services were measured at all loads. 1: a service was not measured at a load.
    2: there is no valid measurement, because the load generator was late or the run failed.
    """
    from loadtest.report.compare import compare_summary
    from loadtest.scenarios.compare import run_compare

    measured = partial(run_compare, Workspace(work), emit=print_progress, rounds=rounds, seconds=seconds)
    run_scenario("compare", out, measured, compare_summary, as_json)


@app.command()
def scale(
    work: Work = WORK,
    config: Config = CONFIG,
    part: Annotated[list[str] | None, typer.Option(help="replicas or step; both by default")] = None,
    cycles: Annotated[int, typer.Option(min=1, max=100, help="number of replica cycles 1 → 3 → 1")] = 5,
    hold: Annotated[float, typer.Option(min=5, max=600, help="seconds for each change of replicas")] = 15,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Test scaling of replicas under load with a throttled Scorer. About 6 minutes.

    The part `replicas` changes the number of replicas from 1 to 3 and back, --cycles times, at 60 %
    of the capacity of one replica. No request may fail.

    The part `step` doubles the load. Within 10 s more replicas must run, and the p99 must be within
    its limit again.

    Exit code 0: the limits held. 1: they did not hold. 2: there is no valid measurement, because
    the load generator was late or the run failed.
    """
    from loadtest.report.scale import scale_summary
    from loadtest.scenarios.scale import PARTS, run_scale

    parts = tuple(dict.fromkeys(part)) if part else PARTS
    measured = partial(run_scale, Workspace(work), config, parts, cycles, hold, emit=print_progress)
    run_scenario("scale", out, measured, scale_summary, as_json)


@app.command()
def overload(
    work: Work = WORK,
    config: Config = CONFIG,
    times: Annotated[str, typer.Option(help="offered rates, as multiples of the knee")] = "1.2,2,3",
    seconds: Annotated[float, typer.Option(min=5, max=600, help="seconds of each overload")] = 60,
    bursts: Annotated[int, typer.Option(min=0, max=40, help="bursts of twice the knee, one in 15 s")] = 0,
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
    from loadtest.report.overload import overload_summary
    from loadtest.scenarios.overload import read_times, run_overload
    from loadtest.scenarios.overload_verdict import Overload

    def measured(folder: Path) -> Report:
        loads = [Overload(each, seconds) for each in read_times(times)]
        loads += [Overload.short(bursts)] if bursts else []
        return run_overload(Workspace(work), config, loads, folder, print_progress, knee)

    run_scenario("overload", out, measured, overload_summary, as_json)


@app.command()
def chaos(
    work: Work = WORK,
    config: Config = CONFIG,
    fault: Annotated[list[str] | None, typer.Option(help="fault; repeat for more; all by default")] = None,
    rate: Annotated[float | None, typer.Option(min=1, help="requests/s, instead of 60 % of the knee")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Start the service and inject faults under load. Under 25 minutes.

    Faults are kills, hangs, pauses, unavailable stores and configuration changes. The report lists
    the allowed and the measured effect of each fault; docs/chaos.md has the table.

    Exit code 0: all limits held. 1: a limit did not hold. 2: there is no valid measurement, because
    the load generator was late or the run failed.
    """
    from loadtest.report.chaos import chaos_summary
    from loadtest.scenarios.chaos.run import run_chaos

    measured = partial(run_chaos, Workspace(work), config, fault or (), rate, emit=print_progress)
    run_scenario("chaos", out, measured, chaos_summary, as_json)


@app.command()
def soak(
    rate: Annotated[float, typer.Option(min=1, max=10_000, help="requests per second, say 70 % of the knee")],
    url: Url = None,
    minutes: Annotated[float, typer.Option(min=0.05, max=10_080, help="measured minutes")] = 10,
    cluster: Annotated[Path, typer.Option(help="run folder of the service at --url")] = Path("var/run"),
    log: Log = LOG,
    ids: Ids = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Load the service at --url for a long time and detect latency drift and resource leaks.

    A warm-up of 30 s comes first and is not counted. There are three limits:

    - The p99 of the last third of the time is at most 10 % above the p99 of the first third.

    - After the first fifth of the time, the private resident memory of all processes grows by at
    most 5 %, and so does the number of their open files.

    - No request fails.

    Exit code 0: the limits held. 1: they did not hold. 2: there is no valid measurement, because
    the load generator was late, no service answered, or the input is unusable.
    """
    from loadtest.report.run import soak_findings
    from loadtest.scenarios.soak import run_soak, soak_profile

    def measured(folder: Path) -> Report:
        used, profile = find_ids(ids, log, soak_profile(rate, minutes * 60), print_progress)
        return run_soak(profile, running_url(url), used, cluster, folder, print_progress)

    run_scenario("soak", out, measured, soak_findings, as_json)


if __name__ == "__main__":
    app(prog_name="python -m loadtest")
