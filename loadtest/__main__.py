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
        help="URL of the running service, which keeps the posted records",
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
    """Run load tests. Exit codes: 0 held, 1 not held, 2 invalid measurement or failed run."""


@app.command()
def run(
    profile: Annotated[str, typer.Option(help="headline, modest, step, spike, diurnal or TOML")] = "headline",
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
            help="run folder of `serve up`, or URL of a Ray dashboard, to count replicas and nodes; "
            "var/run by default if it serves --url"
        ),
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Load the service at --url in an open loop and check its answers against an SLO.

    A profile with a shape (step, spike, diurnal) must meet the same limits over the whole run. The
    report also lists each phase, and the time until the limits held again after each step up.
    `serve plan` can read timeline.csv as a trace.

    Exit codes: 0 held, 1 not held, 2 invalid measurement (the generator was late), no service or
    unusable input.
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
    """Measure the time from an event to a ranking that shows it, under load: p99 below 1 s.

    The test posts synthetic viewer events to the service at --url, and the service keeps them. Do
    not run it against a service in production use. Rankings follow the headline profile. The rates
    of rankings and of events must reach 95 % of their targets, and no ranking may fail.

    Exit codes: 0 held, 1 not held, 2 invalid measurement (the generator was late), no service or
    unusable input.
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
    pairs: Annotated[int, typer.Option(min=1, max=100, help="pairs of windows, without and with them")] = 5,
    as_json: Json = False,
) -> None:
    """Measure how slow clients affect other requests: they send one byte per second.

    Half of the slow clients send their headers slowly, the other half their bodies.

    Exit codes: 0 held (the p99 of normal requests is at most 1.2 times as long, and none of them
    fails), 1 not held, 2 invalid measurement (the generator was late) or failed run.
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

    The load is open-loop.

    Exit codes: 0 found, 1 no rate held, 2 invalid measurement (late generator) or failed run.
    """
    from loadtest.report.knee import knee_findings
    from loadtest.scenarios.knee import run_knee

    measured = partial(run_knee, Workspace(work), config, candidates, emit=print_progress)
    run_scenario("knee", out, measured, knee_findings, as_json)


@app.command()
def compare(
    work: Work = WORK,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="rounds at each load")] = 5,
    seconds: Annotated[int, typer.Option(min=1, max=600, help="seconds of each service in a round")] = 6,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Compare tabrank and plain FastAPI in turns. About 10 minutes.

    Both run at once. Loads: a closed loop on 1, 8, 32 and 64 connections, then an open loop at 10,
    100 and 900 requests/s. A service that does not answer 90 % of a rate's requests in full in the
    first round skips the others.

    Exit codes: 0 all measured, 1 a service was not measured at a load, 2 invalid measurement
    (the generator was late) or failed run.
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

    replicas: 1 → 3 → 1 at 60 % load, --cycles times; no request fails. step: within 10 s of a
    doubled load, more replicas run and the p99 is below its limit again.

    Exit codes: 0 held, 1 not held, 2 invalid measurement (the generator was late) or failed run.
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
    bursts: Annotated[int, typer.Option(min=0, max=40, help="bursts of twice the knee, each in 15 s")] = 0,
    knee: Annotated[float | None, typer.Option(min=1, help="known knee with this pinning, in req/s")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Overload the service on its own core. About 13 minutes.

    The service runs on one core and the load generator on another; the knee is the lower one of two
    measured before and after with the same CPU pinning. Limits: full answers a second of 75 % of
    the knee at up to 1.2 times the knee, 50 % at up to twice the knee and 30 % above, p99 of
    answers ≤ 100 ms, no failure but refusals, full answers again ≤ 2 s after the overload;
    docs/overload.md lists all. At the end, twice the knee without load shedding decides too: this
    control must not hold.

    Exit codes: 0 held, 1 not held, 2 invalid measurement (the generator was late) or failed run.
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
    fault: Annotated[list[str] | None, typer.Option(help="fault to inject; repeat; all by default")] = None,
    rate: Annotated[float | None, typer.Option(min=1, help="requests/s, instead of 60 % of the knee")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Start the service and inject faults under load. Under 25 minutes.

    Faults are kills, hangs, pauses, unavailable stores and configuration changes. The report lists
    the allowed and the measured effect of each fault; docs/chaos.md has the table.

    Exit codes: 0 all held, 1 one did not hold, 2 invalid measurement (the generator was late) or
    failed run.
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
    cluster: Annotated[Path, typer.Option(help="run folder, to find its processes")] = Path("var/run"),
    log: Log = LOG,
    ids: Ids = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Load the service at --url for a long time and detect latency drift and resource leaks.

    Limits: the p99 of the last third is at most 10 % above the p99 of the first third; private
    resident memory and open files of all processes grow by at most 5 % after the first fifth; no
    request fails. A warm-up of 30 s comes first and is not counted.

    Exit codes: 0 held, 1 not held, 2 invalid measurement (the generator was late), no service or
    unusable input.
    """
    from loadtest.report.run import soak_findings
    from loadtest.scenarios.soak import run_soak, soak_profile

    def measured(folder: Path) -> Report:
        used, profile = find_ids(ids, log, soak_profile(rate, minutes * 60), print_progress)
        return run_soak(profile, running_url(url), used, cluster, folder, print_progress)

    run_scenario("soak", out, measured, soak_findings, as_json)


if __name__ == "__main__":
    app(prog_name="python -m loadtest")
