"""`python -m loadtest`: prove rate and latency of a service, one that runs or one that is started for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loadtest.generator.ids import find_ids, read_log_kinds
from loadtest.measure.service import DEFAULT_URL
from loadtest.measure.verdict import Verdict
from loadtest.report.report import Report, refuse_existing
from loadtest.report.run import summary
from loadtest.scenarios.profile_run import run_profile
from loadtest.targets.workspace import Workspace
from loadtest.terminal import print_progress, run_benchmark, run_measurement
from loadtest.workload.profiles import MAX_CANDIDATES, load_profile, load_slo

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

LOG, WORK, CONFIG = Path("var/log"), Path("var/bench"), Path("cluster.yaml")
Url = Annotated[str, typer.Option(help="the running service to measure; it keeps what is posted")]
Log = Annotated[Path, typer.Option(help="log folder to take viewers, candidates and kinds of events from")]
Ids = Annotated[Path | None, typer.Option(help="JSON file of viewers and candidates, instead of a log")]
Work = Annotated[Path, typer.Option(help="folder of the log, model and store to use, made if missing")]
Config = Annotated[Path, typer.Option(help="the cluster.yaml to measure")]
Out = Annotated[Path | None, typer.Option(help="folder to write, var/loadtest/NAME-TIME by default")]
Json = Annotated[bool, typer.Option("--json", help="print the report as one JSON object")]


@app.callback()
def commands() -> None:
    """Load tests. Exit codes: 0 held, 1 not held, 2 void or could not be run."""


@app.command()
def run(
    profile: Annotated[
        str, typer.Option(help="headline, modest, step, spike, diurnal, or a .toml file with the same keys")
    ] = "headline",
    url: Url = DEFAULT_URL,
    slo: Annotated[
        Path | None, typer.Option(help="TOML file with other limits than the shipped ones")
    ] = None,
    log: Log = LOG,
    ids: Ids = None,
    rps: Annotated[float | None, typer.Option(help="requests a second, instead of the profile's")] = None,
    duration: Annotated[float | None, typer.Option(help="seconds measured, instead of the profile's")] = None,
    warmup: Annotated[float | None, typer.Option(help="seconds before, not counted, likewise")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="run folder of `serve up`, or a dashboard's URL, whose replicas and nodes are watched; "
            "var/run by default, if it serves --url"
        ),
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Load the service at --url in an open loop and hold its answers against an SLO.

    A profile with a shape (step, spike, diurnal) is held against the same limits over the whole; the report tells
    each phase, and how soon after a step up they held again. timeline.csv is a trace that `serve plan` reads.

    Exit codes: 0 held, 1 not held, 2 void (the generator was late, or there is no service) or unusable input.
    """

    def measured() -> tuple[Report, Path, Verdict]:
        report, folder = run_profile(profile, url, slo, log, ids, rps, duration, warmup, cluster, out)
        return report, folder, report["verdict"]

    run_measurement(measured, summary, as_json, {"profile": profile, "url": url})


@app.command()
def freshness(
    url: Url = DEFAULT_URL,
    log: Log = LOG,
    ids: Ids = None,
    rate: Annotated[float, typer.Option(min=1, max=10_000, help="rankings a second beside it")] = 900,
    events: Annotated[
        float, typer.Option(min=1, max=10_000, help="viewers' events a second beside it")
    ] = 500,
    probes: Annotated[float, typer.Option(min=0.1, max=100, help="events a second that are followed")] = 5,
    duration: Annotated[float, typer.Option(min=1, max=600, help="seconds measured")] = 30,
    warmup: Annotated[
        float, typer.Option(min=0, max=600, help="seconds of load before, in which none is followed")
    ] = 10,
    slo: Annotated[
        Path | None, typer.Option(help="TOML file with another generator_late_ms_p99 than the shipped one")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure how soon an event shows in a ranking of the service at --url, under load: p99 below 1 s.

    The viewers' events that it posts are made up, and the service keeps them: not for one that people use.
    Rankings are those of the headline profile; their rate and the events' must reach 95 % of what is asked,
    and no ranking may fail.

    Exit codes: 0 held, 1 not held, 2 void (the generator was late, or there is no such service) or unusable
    input.
    """
    from loadtest.report.freshness import freshness_summary

    def measured(folder: Path) -> tuple[Report, Verdict]:
        from loadtest.report.freshness import write_freshness
        from loadtest.scenarios.freshness import Plan, run_freshness

        profile = load_profile("headline", target_rps=rate, duration_s=duration, warmup_s=warmup)
        refuse_existing(folder)
        kinds = None if ids else read_log_kinds(log)
        who = find_ids(ids, log, profile.candidates)
        report, followed = run_freshness(Plan(profile, events, probes), url, who, kinds, load_slo(slo))
        write_freshness(folder, report, followed)
        return report, report["verdict"]

    run_benchmark("freshness", out, measured, freshness_summary, as_json, {"url": url})


@app.command()
def slow(
    url: Url = DEFAULT_URL,
    log: Log = LOG,
    ids: Ids = None,
    rps: Annotated[float, typer.Option(min=50, help="normal requests a second")] = 300,
    clients: Annotated[int, typer.Option(min=2, max=2_000, help="slow clients")] = 500,
    pairs: Annotated[int, typer.Option(min=1, max=100, help="windows with them, and as many without")] = 5,
    as_json: Json = False,
) -> None:
    """What slow clients cost the others: half of them send their headers, half their bodies, a byte a second.

    Exit codes: 0 held (the p99 of normal traffic is at most 1.2 times as long, and nothing of it fails), 1 not held,
    2 void (the generator was late) or could not be run.
    """
    from loadtest.scenarios.slow import Plan, run_slow, slow_summary

    def measured() -> tuple[Report, Path | None, Verdict]:
        profile = load_profile("headline", target_rps=rps)
        asked = find_ids(ids, log, profile.candidates)
        report = run_slow(Plan(profile, clients, pairs), url, asked)
        return report, None, report["verdict"]

    run_measurement(measured, slow_summary, as_json)


@app.command()
def knee(
    work: Work = WORK,
    config: Config = CONFIG,
    candidates: Annotated[int, typer.Option(min=1, max=MAX_CANDIDATES, help="to a request")] = 55,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Start the service and find the highest rate that holds the shipped SLO, in an open loop. About 4 minutes.

    Exit codes: 0 found, 1 not even the lowest rate held, 2 could not be run.
    """
    from loadtest.report.knee import knee_summary
    from loadtest.scenarios.knee import run_knee

    def measured(folder: Path) -> tuple[Report, Verdict]:
        report = run_knee(Workspace(work), config, candidates, folder, print_progress)
        return report, "held" if report["knee_rps"] is not None else "not held"

    run_benchmark("knee", out, measured, knee_summary, as_json)


@app.command()
def compare(work: Work = WORK, out: Out = None, as_json: Json = False) -> None:
    """Find the knees of tabrank, plain FastAPI and Ray Serve as its guide teaches. Under 10 minutes.

    Exit codes: 0 found, 1 not even the lowest rate held for one of them, 2 could not be run.
    """
    from loadtest.report.knee import compare_summary
    from loadtest.scenarios.compare import run_compare

    def measured(folder: Path) -> tuple[Report, Verdict]:
        report = run_compare(Workspace(work), folder, print_progress)
        return report, "held" if None not in report["knee_rps"].values() else "not held"

    run_benchmark("compare", out, measured, compare_summary, as_json)


@app.command()
def scale(
    work: Work = WORK,
    config: Config = CONFIG,
    part: Annotated[
        list[str] | None, typer.Option(help="replicas, step or nodes; may be repeated; all by default")
    ] = None,
    cycles: Annotated[int, typer.Option(min=1, max=100, help="how often replicas go 1 → 3 → 1")] = 5,
    hold: Annotated[
        float, typer.Option(min=5, max=600, help="seconds for each change of replicas, and the load after it")
    ] = 15,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Prove that replicas and nodes come and go under load, with a Scorer that sleeps. About 8 minutes.

    replicas: 1 → 3 → 1 at 60 % load, --cycles times, and no request fails. step: of a doubled load more replicas
    are up, and the p99 is back under its limit, within 10 s. nodes: a load step brings a node, its end takes it away.

    Exit codes: 0 held, 1 not held, 2 void (the generator was late) or could not be run.
    """
    from loadtest.report.scaling import scale_summary
    from loadtest.scenarios.scaling.replicas import Plan
    from loadtest.scenarios.scaling.scale import PARTS, run_scale

    def measured(folder: Path) -> tuple[Report, Verdict]:
        parts = tuple(dict.fromkeys(part)) if part else PARTS
        report = run_scale(Workspace(work), config, parts, Plan(cycles, hold), folder, print_progress)
        return report, report["verdict"]

    run_benchmark("scale", out, measured, scale_summary, as_json)


@app.command()
def overload(
    work: Work = WORK,
    config: Config = CONFIG,
    times: Annotated[
        str, typer.Option(help="how many times the knee is offered, separated by commas")
    ] = "2,3",
    seconds: Annotated[float, typer.Option(min=5, max=600, help="of each overload")] = 60,
    knee: Annotated[
        float | None, typer.Option(min=1, help="requests a second, if the knee under the pinning is known")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Offer the service more than it can do, on a core of its own; then with its ladder off. About 6 minutes.

    The service runs on one core and the load generator on another; the knee is measured under this pinning. Held:
    goodput of 90 % of the knee at up to twice it and 70 % above, p99 of answers ≤ 100 ms, no 5xx, refusals in the
    replica ≤ 10 ms, normal again ≤ 5 s after; and with the ladder off it does not hold.

    Exit codes: 0 held, 1 not held, 2 void (the generator was late) or could not be run.
    """
    from loadtest.report.overload import overload_summary
    from loadtest.scenarios.overload.found import Plan
    from loadtest.scenarios.overload.run import read_times, run_overload

    def measured(folder: Path) -> tuple[Report, Verdict]:
        factors, plan = read_times(times), Plan(seconds)
        return run_overload(Workspace(work), config, factors, plan, folder, print_progress, knee)

    run_benchmark("overload", out, measured, overload_summary, as_json)


@app.command()
def chaos(
    work: Work = WORK,
    config: Config = CONFIG,
    fault: Annotated[
        list[str] | None, typer.Option(help="the name of one; may be repeated; all by default")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1, help="requests a second, instead of 60 % of the knee")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Start the service, and hurt it under load: kills, hangs, stores gone, changes. Under 20 minutes.

    Each fault is told with what is allowed and what was measured; docs/chaos.md has the table.

    Exit codes: 0 all held, 1 one did not, 2 void (the generator was late) or could not be run.
    """
    from loadtest.report.chaos import chaos_summary
    from loadtest.scenarios.chaos.run import run_chaos

    def measured(folder: Path) -> tuple[Report, Verdict]:
        return run_chaos(Workspace(work), config, fault or (), rate, folder, print_progress)

    run_benchmark("chaos", out, measured, chaos_summary, as_json)


@app.command()
def soak(
    rate: Annotated[
        float, typer.Option(min=1, max=10_000, help="requests a second; 70 % of the knee is fair")
    ],
    url: Url = DEFAULT_URL,
    minutes: Annotated[float, typer.Option(min=0.05, max=10_080, help="measured")] = 10,
    cluster: Annotated[
        Path, typer.Option(help="run folder of `serve up`, whose processes are looked at")
    ] = Path("var/run"),
    log: Log = LOG,
    ids: Ids = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Load the service at --url for long: the p99 must not drift, memory and open files must not grow.

    Held: the p99 of the last third ≤ 10 % above that of the first, own resident memory and open files of all
    processes grow ≤ 5 % after the first fifth, no request fails. Before it half a minute that does not count.

    Exit codes: 0 held, 1 not held, 2 void (the generator was late, or there is no service) or unusable input.
    """
    from loadtest.report.soak import soak_summary
    from loadtest.scenarios.soak import run_soak

    def measured(folder: Path) -> tuple[Report, Verdict]:
        return run_soak(url, minutes * 60, rate, cluster, log, ids, folder, print_progress)

    run_benchmark("soak", out, measured, soak_summary, as_json, {"url": url})


if __name__ == "__main__":
    app(prog_name="python -m loadtest")
