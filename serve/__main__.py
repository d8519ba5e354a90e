"""`python -m serve`: start, fill and look at the ranking service."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.contract.commands import CONFIG, RUN, Commands, ConfigFile, Json, RunFolder
from serve.contract.validation import milliseconds
from serve.log.atomic_files import PRIVATE
from serve.operate.render.commands import render
from serve.operate.rollout.commands import models

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False
)
bench = typer.Typer(no_args_is_help=True)
app.add_typer(bench, name="bench", help="Measure speed on this machine.")
app.add_typer(
    models, name="models", help="The published versions: list, promote, roll back, canary, score shift."
)
app.add_typer(
    render, name="render", help="Write the launcher file or RayService of a cluster, or a systemd unit."
)
AnyRunFolder = Annotated[
    Path | None, typer.Option("--run", help="The run folder of `up`.  [default: var/run]")
]
Address = Annotated[
    str | None,
    typer.Option(help="A Ray cluster's dashboard instead, http://HOST:8265.", envvar="RAY_DASHBOARD_ADDRESS"),
]


@app.command()
def up(
    config: ConfigFile = CONFIG,
    run: RunFolder = RUN,
    haproxy: Annotated[bool, typer.Option(help="The fast ingress, or Ray's plain proxy.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for it to answer.")] = 120.0,
    as_json: Json = False,
) -> None:
    """Start the service of a `cluster.yaml`, or deploy its changes, and return when it answers."""
    from serve.operate.run.local_cluster import up as start

    os.umask(PRIVATE)
    service = start(config, run_dir=run, haproxy=haproxy, timeout_s=timeout, progress=_say)
    for reason in service["degraded"]:
        _say(f"warning: {reason}")
    done = "nothing to change" if service["action"] == "none" else service["action"]
    _answer(service, as_json, f"{done}: {service['url']} answers ({service['seconds']} s)")


@app.command()
def down(run: RunFolder = RUN, as_json: Json = False) -> None:
    """Stop the service and every process of it, whatever state it is in."""
    from serve.operate.run.local_cluster import NEVER
    from serve.operate.run.local_cluster import down as stop

    stopped = stop(run, progress=_say)
    never = stopped["was"] == NEVER
    line = f"no service was ever started in {run}" if never else f"stopped (it was {stopped['was']})"
    line += f"; its logs are in {stopped['kept_logs']}" if stopped["kept_logs"] else ""
    _answer(stopped, as_json, line)


@app.command()
def status(
    run: AnyRunFolder = None,
    address: Address = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.5)] = 2.0,
    as_json: Json = False,
) -> None:
    """What runs and how it ranks, on one screen. Exit code 0 if it is ready and nothing is degraded, else 1."""
    from serve.operate.status.screen import keep_showing, render
    from serve.operate.status.vitals import look

    if watch:
        found = keep_showing(run, address, every, as_json)
    else:
        found = look(run, address)
        _answer(found, as_json, render(found))
    if found["state"] != "ready" or found["degraded"]:
        raise typer.Exit(1)


@app.command()
def diff(
    config: ConfigFile = CONFIG,
    run: AnyRunFolder = None,
    address: Address = None,
    apply: Annotated[bool, typer.Option("--apply", help="Deploy the file in place.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for it to run.")] = 120.0,
    as_json: Json = False,
) -> None:
    """How a `cluster.yaml` differs from what runs, and what each change does.

    Exit code 0 if nothing differs or all was applied, 1 if something differs or was refused, 2 if nothing runs here or
    the file cannot be read.
    """
    from serve.operate.diff.apply import diff as differ

    result, lines, held = differ(config, run, address, apply, timeout, _say)
    _answer(result, as_json, "\n".join(lines))
    if not held:
        raise typer.Exit(1)


@app.command()
def popular(
    off: Annotated[bool, typer.Option("--off", help="Back to the rankings of the arms.")] = False,
    run: AnyRunFolder = None,
    address: Address = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for it to run.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Put every ranking on the popular order, in place; the file stays as it is."""
    from serve.operate.diff.apply import popular as turn

    result, line = turn(run, address, not off, timeout, _say)
    _answer(result, as_json, line)


@app.command()
def check(config: ConfigFile = CONFIG, as_json: Json = False) -> None:
    """Read a `cluster.yaml` strictly, and name all that is wrong with it. Exit code 1 if it is refused."""
    from serve.config.reader import read
    from serve.config.yaml_positions import Refused

    try:
        warnings, problems = read(config).warnings, []
    except Refused as refused:
        warnings, problems = tuple(refused.warnings), refused.problems
    for warning in warnings:
        _say(f"warning: {warning}")
    told = {
        "accepted": not problems,
        "problems": [asdict(problem) for problem in problems],
        "warnings": [asdict(warning) for warning in warnings],
    }
    _answer(told, as_json, "\n".join(map(str, problems)) or f"{config}: accepted")
    if problems:
        raise typer.Exit(1)


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Of the caller, as it is to stand in the file.")] = "caller",
    rps: Annotated[float, typer.Option(help="Requests a second that it may ask.", min=0.01)] = 1_000.0,
    as_json: Json = False,
) -> None:
    """Mint a key for a caller: print it, this once, and its hash as `user_config.api_keys` takes it."""
    from serve.config.settings import ApiKey
    from serve.http.auth import mint

    secret, sha256 = mint()
    entry = {name: {"sha256": sha256, "requests_per_s": rps}}
    ApiKey.from_mapping(name, entry[name], f"api_keys.{name}")  # what `check` would refuse
    line = json.dumps(entry)[1:-1]  # YAML too, whatever the name is
    told = f"X-Api-Key: {secret}\nthe file keeps only its hash, under user_config.api_keys of FeatureFetch:\n  {line}"
    _answer({"key": secret, "api_keys": entry}, as_json, told)


@app.command()
def load(
    log: Annotated[Path, typer.Option(help="The log to replay: a folder of Parquet.")],
    surface: Annotated[
        str, typer.Option(help="A shipped surface's name, or the path of a TOML file.")
    ] = "spaces",
    store: Annotated[
        str, typer.Option(help="The store to fill; what it held is replaced.")
    ] = "lmdb:var/store",
    until: Annotated[
        str | None, typer.Option(help="Replay what lies before: ISO time or milliseconds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fill the store with the state that a log leaves."""
    from serve.features.surface import load_surface
    from serve.ingest.backfill import load as fill
    from serve.stores.factory import shown

    os.umask(PRIVATE)
    until_ms = None if until is None else milliseconds(until, "--until")
    counts = fill(load_surface(surface), log, store, Path.cwd(), until_ms)
    _answer(
        counts, as_json, f"{shown(store)}: {counts['viewers']} viewers, {counts['candidates']} candidates"
    )


@app.command()
def observe(
    run: RunFolder = RUN,
    port: Annotated[int, typer.Option(help="Of Prometheus, on 127.0.0.1.", min=1, max=65535)] = 9090,
    data: Annotated[Path, typer.Option(help="Where Prometheus keeps what it has seen.")] = Path(
        "var/observe"
    ),
) -> None:
    """Start a local Prometheus on the running service, with alerts and a dashboard, until Ctrl-C."""
    from serve.operate.host.run_folder import RunFolder as Folder
    from serve.operate.observe.prometheus import observe as watch

    with contextlib.suppress(KeyboardInterrupt):  # which is how it ends
        watch(Folder.of(run), data, port, _say)


@app.command()
def plan(
    config: ConfigFile = CONFIG,
    trace: Annotated[
        Path | None, typer.Option(help="A CSV with t_s and offered_rps: what is offered, from when on.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="A real run's timeline.csv: plan its load, hold it against its counts."),
    ] = None,
    costs: Annotated[Path | None, typer.Option(help="Measured costs; the shipped ones if not given.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for plan.json, plan.csv, report.html.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the arrivals.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """The replicas and nodes that a `cluster.yaml` would give over a load trace, by Ray's own code.

    With --compare, exit code 1 if a replica count is more than one off, 2 if nothing scales in the file.
    """
    from serve.operate.plan.command import Request
    from serve.operate.plan.command import plan as make
    from serve.operate.plan.report import table

    report = make(Request(config, trace, compare, costs, out, seed), progress=_say)
    _answer(report, as_json, table(report))
    if report["comparison"] is not None and not report["comparison"]["holds"]:
        raise typer.Exit(1)


@bench.command()
def fetch(as_json: Json = False) -> None:
    """Time of a request's fetch and features, by batch, viewers and live candidates; takes 5 GB for a while."""
    from serve.bench.fetch import bench_fetch, table

    result = bench_fetch(progress=_say)
    _answer(result, as_json, table(result))


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _answer(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result) if as_json else text)


if __name__ == "__main__":
    app(prog_name="python -m serve")
