"""Start, fill and inspect the ranking service: `python -m serve COMMAND`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import (
    CONFIG,
    RUN,
    Address,
    AnyRunFolder,
    ConfigFile,
    Json,
    Parts,
    RunFolder,
    answer,
    command_line,
)
from serve.contract.logs import SERVICE_LOGGER
from serve.operate.render.commands import render
from serve.operate.rollout.commands import models
from serve.storage.atomic_files import PRIVATE
from serve.storage.bucket import place

Yes = Annotated[bool, typer.Option("--yes", help="Deploy what `diff` marks with `needs --yes`.")]
app = command_line(__doc__)
app.add_typer(
    models, name="models", help="List, promote and roll back versions, start a canary, compare scores."
)
app.add_typer(render, name="render", help="Write a RayService for Kubernetes.")


@app.command()
def up(
    config: ConfigFile = CONFIG,
    run: RunFolder = RUN,
    timeout: Annotated[
        float,
        typer.Option(help="Seconds until the service must answer; up to four times as many under overload."),
    ] = 120.0,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Start the service of a `cluster.yaml`, or deploy its changes; return once it answers."""
    from serve.operate.run.local_cluster import up as start

    os.umask(PRIVATE)
    service = start(config, run_dir=run, yes=yes, timeout_s=timeout, progress=_progress)
    for reason in service["degraded"] + service["advice"]:
        _progress(f"warning: {reason}")
    done = "nothing to change" if service["action"] == "none" else service["action"]
    answer(service, as_json, f"{done}: {service['url']} answers ({service['seconds']} s)")


@app.command()
def down(run: RunFolder = RUN) -> None:
    """Stop the service and all its processes, whatever their state."""
    from serve.operate.run.local_cluster import NEVER
    from serve.operate.run.local_cluster import down as stop

    stopped = stop(run, progress=_progress)
    never = stopped["was"] == NEVER
    line = f"no service was ever started in {run}" if never else f"stopped (it was {stopped['was']})"
    print(line + (f"; its logs are in {stopped['kept_logs']}" if stopped["kept_logs"] else ""))


@app.command()
def status(run: AnyRunFolder = None, address: Address = None, as_json: Json = False) -> None:
    """Show on one screen what to do first, and how the running service ranks.

    Exit code 0: the service is ready and nothing is degraded; advice does not count. 1: it is
    degraded or down. 2: its state cannot be read.
    """
    # The screen states what is wrong with a bucket; a warning on stderr would break it.
    logging.getLogger(SERVICE_LOGGER).addHandler(logging.NullHandler())
    from serve.operate.status.screen import show
    from serve.operate.status.vitals import look

    found = look(run, address)
    show(found, as_json)
    if found.state != "ready" or found.degraded:
        raise typer.Exit(1)


@app.command()
def console(
    run: AnyRunFolder = None,
    address: Address = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port on 127.0.0.1; if not given, 8090 or a free one.", min=1, max=65535),
    ] = None,
) -> None:
    """Show the service on a read-only web page, where you can try rankings, until Ctrl-C."""
    from serve.operate.console.server import serve

    # Ctrl-C is the normal way to stop it.
    with contextlib.suppress(KeyboardInterrupt):
        serve(run, address, port, _progress)


@app.command()
def diff(
    config: ConfigFile = CONFIG,
    run: AnyRunFolder = None,
    address: Address = None,
    apply: Annotated[bool, typer.Option("--apply", help="Deploy the file in place.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Compare a `cluster.yaml` with the running service, and say what each change would do.

    The text of each surface is compared too, as its file is now.

    Exit code 0: nothing differs, or all changes were applied. 1: there are differences, or a change
    was refused. 2: no service runs here, the file cannot be read, or another command deployed
    first.
    """
    from serve.operate.diff.apply import diff as differ

    result, lines, held = differ(config, run, address, apply, _progress, yes=yes)
    answer(result, as_json, "\n".join(lines), held=held)


@app.command()
def popular(
    off: Annotated[bool, typer.Option("--off", help="Let the arms rank again.")] = False,
    run: AnyRunFolder = None,
    address: Address = None,
) -> None:
    """Answer every ranking with the popular order, without a restart; the file does not change.

    Only `--off` ends it, or `up` or `diff --apply` with `--yes`.
    """
    from serve.operate.diff.apply import popular as turn

    print(turn(run, address, not off, _progress))


@app.command()
def check(config: ConfigFile = CONFIG, as_json: Json = False) -> None:
    """Validate a `cluster.yaml` strictly and list all problems. Exit code 1 if it is refused."""
    from serve.config.reader import read
    from serve.config.yaml_positions import ConfigRefused

    try:
        warnings, problems = read(config).warnings, []
    except ConfigRefused as refused:
        warnings, problems = tuple(refused.warnings), refused.problems
    for warning in warnings:
        _progress(f"warning: {warning}")
    result = {
        "accepted": not problems,
        "problems": [asdict(problem) for problem in problems],
        "warnings": [asdict(warning) for warning in warnings],
    }
    text = "\n".join(map(str, problems)) or f"{config}: accepted"
    answer(result, as_json, text, held=not problems)


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Name of the caller in the file.")] = "caller",
    rps: Annotated[float, typer.Option(help="Allowed requests per second.", min=0.01)] = 1_000.0,
    as_json: Json = False,
) -> None:
    """Create a caller's API key; print it once, with its hash for `user_config.api_keys`."""
    from serve.config.settings import UserConfig
    from serve.http.auth import mint

    secret, sha256 = mint()
    entry = {name: {"sha256": sha256, "requests_per_s": rps}}
    # Refuse the values that `check` would refuse.
    UserConfig.from_mapping({"api_keys": entry})
    # JSON is valid YAML, whatever the name is.
    line = json.dumps(entry)[1:-1]
    text = f"X-Api-Key: {secret}\nput only its hash in the file, in user_config.api_keys of FeatureFetch:\n  {line}"
    answer({"key": secret, "api_keys": entry}, as_json, text)


@app.command()
def load(
    log: Annotated[
        Path, typer.Option(parser=place, metavar="PATH", help="The log: a folder, or s3://BUCKET/KEY.")
    ],
    surface: Annotated[
        str, typer.Option(help="Name of a shipped surface, or path of a TOML file.")
    ] = "spaces",
    store: Annotated[str, typer.Option(help="Store to fill; its content is replaced.")] = "lmdb:var/store",
    without_journal: Annotated[
        bool,
        typer.Option(
            "--without-journal",
            help="Fill the store although the log's own store is lost, and with it up to a minute of records.",
        ),
    ] = False,
) -> None:
    """Fill a store by replaying a log. A service may run meanwhile if it uses another store.

    After a change of the surface, fill the new store and then deploy with `python -m serve up`.
    Nothing is lost meanwhile: the service applies what has arrived when it starts with the new
    store.
    """
    from serve.features.surface import load_surface
    from serve.ingest.backfill import load as fill
    from serve.stores.protocol import shown

    os.umask(PRIVATE)
    parts = Parts(_progress)
    parts.begin(f"replaying {log}")
    counts = fill(
        load_surface(surface),
        log,
        store,
        Path.cwd(),
        _progress,
        named=surface,
        without_journal=without_journal,
    )
    parts.end()
    partly = [name for name, since_ms in counts["complete_since_ms"].items() if since_ms is not None]
    rest = f"only with newer records: {', '.join(partly)}" if partly else "every feature is complete"
    print(f"{shown(store)}: {counts['viewers']} viewers, {counts['candidates']} candidates; {rest}")


@app.command()
def plan(
    trace: Annotated[Path, typer.Option(help="CSV of the offered load: t_s (start) and offered_rps.")],
    config: ConfigFile = CONFIG,
    ongoing_ms: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEPLOYMENT=MS",
            help="How long Ray counts a request as ongoing in a deployment; by default a measured time.",
        ),
    ] = None,
    node_start_s: Annotated[float, typer.Option(min=0, help="Seconds until a new node has joined.")] = 60.0,
    out: Annotated[Path | None, typer.Option(help="New folder for plan.json and report.html.")] = None,
    as_json: Json = False,
) -> None:
    """Compute how many replicas and nodes a `cluster.yaml` would run under a load, with Ray's code.

    Exit code 1: the load does not fit, because a deployment needs more than its max_replicas, or a
    replica has no room on a node.
    """
    from serve.operate.plan.command import plan as make
    from serve.operate.plan.report import text_of

    report = make(config, trace, ongoing_ms or [], node_start_s, out)
    answer(report, as_json, text_of(report), held=report["fits"])


@app.command()
def bench(
    store: Annotated[list[str] | None, typer.Option(help="Also measure this empty Redis store.")] = None,
) -> None:
    """Measure the writer's CPU time per ranking. The stores keep the rows that this writes."""
    from serve.bench.writer import bench_writer, table

    print(table(bench_writer(store or ())))


def _progress(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    app(prog_name="python -m serve")
